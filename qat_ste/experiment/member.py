"""One network of a cohort: weights, optimizer, training steps, and re-mapping when the estimator changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Execution, Training
from qat_ste.base.text import of_error
from qat_ste.estimators import Estimator
from qat_ste.experiment.counterparts import MemberSpec
from qat_ste.experiment.execution import executed
from qat_ste.experiment.gradient_update import ById, Clipping, L2Penalty, WeightDecay, mirrored
from qat_ste.experiment.passes import Loss, Outputs, autocast_for, backward, checked_loss, predict
from qat_ste.experiment.ranks import Layout
from qat_ste.experiment.scale_update import follow_scales
from qat_ste.fake_quant.flat_weights import FlatWeights
from qat_ste.fake_quant.member_scales import Seen
from qat_ste.optimizers import Equivalence, KerasSGD, MakeOptimizer
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.quantizers.scales import LearnedScale, MovingScale
from qat_ste.theory.equivalence import SteEquivalent


@dataclass(frozen=True)
class Update:
    """The changes between the backward pass and the optimizer's step, in this order."""

    clipping: Clipping | None = None
    l2: L2Penalty | None = None
    weight_decay: WeightDecay | None = None

    @classmethod
    def of(cls, training: Training) -> Update:
        """The changes that this training asks for."""
        include = training.l2_include
        return cls(
            clipping=Clipping(training.clip_norm, training.clip_at) if training.clip_norm else None,
            l2=L2Penalty(training.l2, include) if training.l2 else None,
            weight_decay=WeightDecay(training.weight_decay, include) if training.weight_decay else None,
        )

    def apply(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        factors: ById = MappingProxyType({}),
        penalized: ById = MappingProxyType({}),
        shrunk: ById = MappingProxyType({}),
    ) -> None:
        """Makes the changes that come after the estimator.

        Args:
            factors: by id of a parameter, what its gradient is multiplied by in the norm; see ``Clipping``.
            penalized, shrunk: by id, the values that decay in place of the parameter's own, by ``l2`` and
                ``weight_decay``.
        """
        if self.clipping is not None and not self.clipping.before_estimator:
            self.clipping.clip(model, factors)
        if self.l2 is not None:
            self.l2.add_gradient(model, penalized)
        if self.weight_decay is not None:
            self.weight_decay.shrink(model, optimizer, shrunk)

    def mirrors(self, equivalence: Equivalence, scales: Sequence[MovingScale | LearnedScale]) -> bool:
        """Whether ``mirrored`` differs from ``ste``: it decays, clips or moves scales by the reference's numbers."""
        if scales and equivalence is Equivalence.REMAP:
            return True
        if equivalence is Equivalence.KEEP and any(scale.has_gradient for scale in scales):
            return True
        clipping = None if self.clipping is None or self.clipping.before_estimator else self.clipping
        mirrored_changes = {
            Equivalence.REMAP: (self.l2, self.weight_decay, clipping),
            Equivalence.KEEP: (self.l2, clipping),
            Equivalence.EXACT: (self.l2,),
            Equivalence.NONE: (),
        }
        return any(change is not None for change in mirrored_changes[equivalence])


@dataclass(frozen=True)
class Needs:
    """What a model needs from its member, as found before training.

    Attributes:
        gradients: evaluation takes derivatives.
        unused: some parameters get no gradient.
        parallel: the passes are those of a shard of the batch, so gradients are averaged over the ranks.
        resized: names of buffers that a step makes, removes or resizes.
        not_replayed: what a step does that a CUDA graph of its passes would not repeat; empty: nothing.
    """

    gradients: bool = False
    unused: bool = False
    parallel: bool = True
    resized: frozenset[str] = frozenset()
    not_replayed: str = ""


class Member:
    """One model of the cohort with its optimizer."""

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        optimizer: MakeOptimizer,
        lr: float,
        spec: MemberSpec,
        training: Training,
        execution: Execution,
        layout: Layout,
        needs: Needs,
        equivalent: SteEquivalent | None = None,
    ) -> None:
        self.model, self.weights, self.accumulate, self.needs = model, weights, training.accumulate, needs
        self.update = Update.of(training)
        self.accumulated_wrong = weights.buffer.new_zeros((), dtype=torch.bool)  # whether a loss was no mean of parts
        self._spec, self._equivalent, self._lr = spec, equivalent, lr * spec.lr_jitter
        quantized = {id(parameter) for parameter in weights.parameters}
        self.other_parameters = [p for p in model.parameters() if id(p) not in quantized and p.requires_grad]
        groups = [
            {"params": weights.parameters, "lr": self._lr * spec.lr_factor},
            {"params": self.other_parameters, "lr": self._lr},
        ]
        self.scale_parameters = [] if weights.scales is None else [*weights.scales.learned.values()]
        if weights.scales is not None:
            groups += [
                {"params": [values], "lr": self._lr * scale.lr}
                for number, values in weights.scales.learned.items()
                if (rule := weights.tensors[number].scale) and (scale := rule.learned)
            ]
        self.optimizer = optimizer([group for group in groups if group["params"]], lr=self._lr)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._parallel = None
        if layout.shard.ranks > 1 and needs.parallel:
            self._parallel = DistributedDataParallel(
                model, process_group=layout.data_group, find_unused_parameters=needs.unused
            )
        self._set_optimizer_mode("train")
        self.execute(execution.execution)
        self._autocast = autocast_for(execution.precision, weights.buffer.device)

    def execute(self, mode: str) -> None:
        """Computes forward and backward passes in this way of ``EXECUTIONS`` from now on."""
        self._forward = executed(self._parallel or self.model, mode)

    def use(self, estimator: Estimator, equivalent: SteEquivalent | None = None) -> None:
        """Switches to another estimator; ``equivalent`` is the new equivalence of a counterpart that follows."""
        self._equivalent = equivalent
        self.weights.use(estimator)
        if self._spec.remap and equivalent is not None:
            self.lrs[0] = self._lr * equivalent.lr_factor

    def step(self, inputs: Tensor, targets: Tensor, loss: Loss, lr_factor: float) -> Tensor:
        """One training step; returns the loss without the penalty, detached."""
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * lr_factor
        self.optimizer.zero_grad()
        inputs, targets = inputs.clone(), targets.clone()  # the model or the loss may work in place
        unsynchronized = self._parallel.no_sync if self._parallel is not None else nullcontext
        with self.weights.quantized():
            value, parts = backward(
                self._forward, loss, inputs, targets, self.accumulate, self._autocast, unsynchronized
            )
        if parts:
            self._compare_with_whole(parts, targets, loss, value)
        self._prepare_step()
        follows = self._spec.mirrored and self._spec.remap and self.weights.scales is not None
        before = self.weights.buffer.clone() if follows else None
        now = [chunk.quantizer for chunk in self.weights.all_chunks] if follows else []
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a foreign optimizer may raise anything
            allowed = f"one that can take a step with lr={self.lrs[0] * lr_factor:g} ({of_error(error)})"
            raise ArgumentError("optimizer", type(self.optimizer).__name__, allowed) from error
        self.weights.rotate()
        if before is None or self._equivalent is None:
            self.weights.rescale()
        else:
            follow_scales(self.weights, before, now, self._equivalent)
            self.weights.rotate_back()
        return value

    @torch.no_grad()
    def _compare_with_whole(self, parts: list[Outputs], targets: Tensor, loss: Loss, value: Tensor) -> None:
        """Notes whether the loss of the batch differs from ``value``, the weighted mean of its parts' losses."""
        try:
            with self._autocast():
                whole = checked_loss(loss, tree_map(lambda *values: torch.cat(values), *parts), targets)
        except (RuntimeError, TypeError, ValueError) as error:
            allowed = f"1, since the outputs of a batch cannot be joined from those of its parts ({of_error(error)})"
            raise ArgumentError("accumulate", self.accumulate, allowed) from error
        lowest = min((leaf.dtype for leaf in tree_leaves(parts) if leaf.is_floating_point()), key=_bits)
        tolerance = max(1e-4, 4 * torch.finfo(lowest).eps)
        self.accumulated_wrong |= (whole - value).abs() > tolerance * (whole.abs() + value.abs())

    @property
    def _seen(self) -> Seen | None:
        """The weights and g of the reference that a mirrored scale gets its gradient from."""
        equivalent, remap = self._equivalent, self._spec.remap
        if not self._spec.mirrored or equivalent is None:
            return None

        def seen(v: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
            w = equivalent.on(quantizer).inverse(v) if remap else v
            return w, equivalent.estimator.derivative(w, quantizer)

        return seen

    def _prepare_step(self) -> None:
        clipping = self.update.clipping
        if clipping is not None and clipping.before_estimator:
            clipping.clip(self.model, {})
        self.weights.estimate(self._seen)
        instead: ById = {}
        factors: ById = {}
        if self._spec.mirrored and self._equivalent is not None and self.update != Update():
            flat = mirrored(self.weights.buffer, self.weights.all_chunks, self._equivalent, self._spec.remap)
            instead, factors = map(self.weights.views, flat)
        self.update.apply(self.model, self.optimizer, factors, instead, instead if self._spec.remap else {})

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context in which model and optimizer are in evaluation mode; afterwards each module is in its own again."""
        modes = [(module, module.training) for module in self.model.modules()]
        self._set_optimizer_mode("eval")
        self.weights.update_modules()
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            self._set_optimizer_mode("train")

    def _set_optimizer_mode(self, mode: str) -> None:
        if set_mode(self.optimizer, mode):
            self.weights.forget()

    def predict(self, inputs: Tensor) -> Outputs:
        """Outputs in the precision of training; those below float32 as float32."""
        return predict(self.model, inputs, self._autocast, self.needs.gradients)

    def state_dict(self) -> dict[str, Any]:
        """State of model and optimizer."""
        self.weights.update_modules()
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""
        for name in self.needs.resized:
            module, _, buffer = name.rpartition(".")
            values = state["model"].get(name)
            on_device = None if values is None else values.to(self.weights.buffer.device, copy=True)
            self.model.get_submodule(module)._buffers[buffer] = on_device
        self.model.load_state_dict(state["model"])
        self.weights.read_modules()
        self.optimizer.load_state_dict(state["optimizer"])


def set_mode(optimizer: torch.optim.Optimizer, mode: str) -> bool:
    """Calls ``train`` or ``eval`` of an optimizer that has both, as those without a schedule do; whether it has."""
    has_modes = all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))
    if has_modes:
        getattr(optimizer, mode)()
    return has_modes


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


@torch.no_grad()
def remap(member: Member, old: SteEquivalent, new: SteEquivalent) -> None:
    """Moves v = M(w) of the old estimator to M(w) of the new one, and scales the momentum to match.

    The reference keeps its momentum b, a sum of g·G. The counterpart moves by M'·dw with M' = α/g, so its motion
    per step is multiplied by r = M'_new(w)/M'_old(w), w = M⁻¹(v). The velocity of ``KerasSGD`` contains the learning
    rate and is multiplied by r. The buffer of torch's SGD, multiplied by α·η afterwards, is multiplied by
    r·α_old/α_new, that is g_old(w)/g_new(w) where neither is 0. Nesterov momentum uses the same buffer.
    """
    weights, optimizer = member.weights, member.optimizer
    factors = torch.ones_like(weights.buffer)
    for chunk in weights.all_chunks:
        before, after, v = old.on(chunk.quantizer), new.on(chunk.quantizer), weights.buffer[chunk.where]
        w = before.inverse(v)
        factors[chunk.where] = after.slope(w) / before.slope(w)
        v.copy_(after.weight_map(w))
    if not isinstance(optimizer, KerasSGD):
        factors *= old.lr_factor / new.lr_factor
    by_id = weights.views(factors)
    for parameter in weights.parameters:
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            momentum.mul_(by_id[id(parameter)])

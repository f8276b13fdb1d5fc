"""One network of a cohort: its weights, its optimizer, its steps, and its re-mapping when the estimator changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qat_ste.estimators import Estimator
from qat_ste.experiment.counterparts import Recipe
from qat_ste.experiment.execution import Execution, executed
from qat_ste.experiment.gradient_update import ById, Clipping, L2Penalty, WeightDecay, mirrored
from qat_ste.experiment.ranks import Layout
from qat_ste.fake_quant.flat_layout import pieces_of
from qat_ste.fake_quant.flat_weights import FlatWeights
from qat_ste.optimizers import Equivalence, KerasSGD, MakeOptimizer
from qat_ste.theory.equivalence import SteEquivalent

Loss = Callable[[Tensor, Tensor], Tensor]


def checked_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, a number to descend on.

    Raises:
        ValueError: it cannot be taken of these, or depends on no weight.
        TypeError: it is something else than a scalar tensor.
    """
    try:
        value = loss(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = " and ".join(_described(part) for part in (outputs, targets))
        raise ValueError(f"loss cannot be taken of {given}: {' '.join(str(error).split())}") from error
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
        raise TypeError(f"loss must return a scalar tensor of floating point, got {_described(value)}")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "loss must depend on the weights, got a value without a gradient: detached, or all are frozen?"
        )
    return value


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


@dataclass(frozen=True)
class Update:
    """What is done between the backward pass and the optimizer's step, in this order."""

    clipping: Clipping | None = None
    l2: L2Penalty | None = None
    weight_decay: WeightDecay | None = None

    def mirrors(self, equivalence: Equivalence) -> bool:
        """Whether an STE has to decay or clip by other numbers than its own to follow, and it is known which."""
        clipping = None if self.clipping is None or self.clipping.before_estimator else self.clipping
        calling = {
            Equivalence.REMAP: (self.l2, self.weight_decay, clipping),
            Equivalence.KEEP: (self.l2, clipping),
            Equivalence.EXACT: (self.l2,),
            Equivalence.NONE: (),
        }
        return any(part is not None for part in calling[equivalence])


class Member:
    """One model of the cohort with its optimizer."""

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        optimizer: MakeOptimizer,
        lr: float,
        recipe: Recipe,
        execution: Execution,
        layout: Layout,
        update: Update = Update(),
        pair: SteEquivalent | None = None,
    ) -> None:
        self.model, self.weights, self.execution, self.update = model, weights, execution, update
        self._recipe, self._pair, self._lr = recipe, pair, lr * recipe.lr_jitter
        quantized = {id(parameter) for parameter in weights.parameters}
        others = [p for p in model.parameters() if id(p) not in quantized and p.requires_grad]
        groups = [{"params": weights.parameters, "lr": self._lr * recipe.lr_factor}, {"params": others, "lr": self._lr}]
        self.optimizer = optimizer([group for group in groups if group["params"]], lr=self._lr)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._parallel = None
        if layout.shard.ranks > 1:
            self._parallel = DistributedDataParallel(model, process_group=layout.data_group)
        self.execute(execution.mode)
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if execution.precision == "bf16":
            device = weights.buffer.device.type
            self._autocast = partial(torch.autocast, device, torch.bfloat16, cache_enabled=False)  # for CUDA graphs

    def execute(self, mode: str) -> None:
        """Computes forward and backward passes in this one of the ``MODES`` from now on."""
        self._forward = executed(self._parallel or self.model, mode)

    def use(self, estimator: Estimator, pair: SteEquivalent | None = None) -> None:
        """Goes on with another estimator; of a counterpart that follows, ``pair`` is the equivalence from now on."""
        self._pair = pair
        self.weights.use(estimator)
        if self._recipe.remap and pair is not None:
            self.lrs[0] = self._lr * pair.lr_factor

    def step(self, inputs: Tensor, targets: Tensor, loss: Loss, lr_factor: float) -> Tensor:
        """One training step; returns the loss without the penalty, detached."""
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * lr_factor
        self.optimizer.zero_grad()
        value: Tensor | float = 0.0
        parts = self.execution.accumulate
        chunks = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True)) if parts > 1 else [(inputs, targets)]
        with self.weights.quantized():
            for number, (some, their_targets) in enumerate(chunks, 1):
                wait = self._parallel is not None and number < len(chunks)
                with cast(DistributedDataParallel, self._parallel).no_sync() if wait else nullcontext():
                    with self._autocast():
                        part = checked_loss(loss, self._forward(some), their_targets)
                    if len(chunks) > 1:
                        part = part * (len(some) / len(inputs))
                    part.backward()
                value = value + part.detach()
        self._prepare_step()
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ArithmeticError) as error:
            raise ValueError(f"optimizer cannot take a step with lr={self.lrs[0] * lr_factor:g}: {error}") from error
        return cast(Tensor, value)

    def _prepare_step(self) -> None:
        l2, weight_decay, clipping = self.update.l2, self.update.weight_decay, self.update.clipping
        if clipping is not None and clipping.before_estimator:
            clipping.clip(self.model, {})
        self.weights.estimate()
        instead: ById = {}
        factors: ById = {}
        if self._recipe.mirrored and self._pair is not None:
            found = mirrored(self.weights.buffer, self.weights.parts, self._pair, self._recipe.remap)
            instead, factors = map(self.weights.views, found)
        if clipping is not None and not clipping.before_estimator:
            clipping.clip(self.model, factors)
        if l2 is not None:
            l2.add_gradient(self.model, instead)
        if weight_decay is not None:
            weight_decay.shrink(self.model, self.optimizer, instead if self._recipe.remap else {})

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs in the precision of training, as float32."""
        with self._autocast():
            return self.model(inputs).float()

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def remap(member: Member, old: SteEquivalent, new: SteEquivalent) -> None:
    """From v = M(w) of the old estimator to that of the new one, and the momentum along with it.

    The reference goes on with its momentum b, a sum of g·G. Its counterpart has moved by M'·dw, M' = α/g, and is to
    do so with the new M': its way per step is multiplied by r = M'_new(w)/M'_old(w), w = M⁻¹(v). The velocity of
    ``KerasSGD``, which has the learning rate in it, by r; the buffer of torch's SGD, which is multiplied by α·η
    afterwards, by r·α_old/α_new, that is g_old(w)/g_new(w) where neither is 0. Nesterov's look ahead is made of
    the same buffer.
    """
    weights, optimizer = member.weights, member.optimizer
    factors = torch.ones_like(weights.buffer)
    for piece in pieces_of(weights.parts, 0, weights.parts[-1].stop):
        before, after, v = old.on(piece.quantizer), new.on(piece.quantizer), weights.buffer[piece.where]
        w = before.inverse(v)
        factors[piece.where] = after.slope(w) / before.slope(w)
        v.copy_(after.weight_map(w))
    if not isinstance(optimizer, KerasSGD):
        factors *= old.lr_factor / new.lr_factor
    by_id = weights.views(factors)
    for parameter in weights.parameters:
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            momentum.mul_(by_id[id(parameter)])

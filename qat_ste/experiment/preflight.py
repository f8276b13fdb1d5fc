"""Checks on copies of the model, before training, whether members can be trained in lockstep on these batches."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qat_ste.base.errors import ArgumentError
from qat_ste.base.text import of_error
from qat_ste.data.dataset import Batch
from qat_ste.experiment.batch_source import on_device, seeded
from qat_ste.experiment.checks import check_batch, explained
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import ACCUMULATION
from qat_ste.experiment.member import Member, Needs
from qat_ste.experiment.passes import Loss, checked_loss
from qat_ste.experiment.randomness import seed_noise
from qat_ste.fake_quant.fake_quantize import plain_name

log = logging.getLogger(__name__)
MOST_NAMES = 3  # in a message
PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, type(None))  # types of values that can be compared


class Preflight:
    """Trains copies of the reference on the first batch; ``run`` sets ``cohort.needs``.

    Args:
        first: the first training batch, which stays as it is.
    """

    def __init__(self, cohort: Cohort, loss: Loss, first: Batch, seed: int) -> None:
        self.cohort, self.loss, self.seed = cohort, loss, seed
        ((self.inputs, self.targets),) = on_device([first], cohort.device, "batches")

    def run(self, validation: Iterable[Batch] | None, resumable: bool) -> None:
        """Runs all checks.

        Args:
            validation: its first batch is read.
            resumable: whether the run is saved; then a model that cannot be resumed bit for bit costs a warning.

        Raises:
            ArgumentError: an argument of ``compare`` cannot be used; names it and the reason.
        """
        cohort = self.cohort
        cohort.needs = Needs(parallel=False)
        member = self._member()
        before, buffers = _shapes(member.model), dict(member.model.named_buffers())
        self._seed(0)
        noise = self._host_noise()
        first_loss = self._step(member, 0)
        drew = noise != self._host_noise()
        after = _shapes(member.model)
        unused = any(p.requires_grad and p.grad is None for p in member.model.parameters())
        needs = Needs(
            unused=any(cohort.layout.ranks.any([unused])),
            resized=frozenset(name for name in before | after if before.get(name) != after.get(name)),
            not_replayed=self._not_replayed(member.model, buffers, drew),
        )
        if not first_loss.isfinite():  # reported by the run itself
            cohort.needs = needs
            return
        if bool(member.accumulated_wrong):
            raise ArgumentError("accumulate", member.accumulate, ACCUMULATION)
        self._check_original()
        self._check_replica(member, first_loss)
        if resumable:
            cohort.needs = replace(needs, parallel=False)
            self._check_resume(member)
        self._seed(0)
        with member.weights.unchanged():
            member.model(self.inputs.clone())
        if validation is not None:
            needs = replace(needs, gradients=self._needs_gradients(member, validation))
        cohort.needs = needs

    def _member(self) -> Member:
        member = self.cohort.member(self.cohort.specs[0])
        member.execute("eager")
        return member

    def _seed(self, step: int) -> None:
        seed_noise(self.seed, step, self.cohort.device, self.cohort.layout.shard.rank)

    def _host_noise(self) -> list[object]:
        """The states of the generators that CUDA graphs do not draw from."""
        numpy: Any = np.random.get_state()
        torch_state = torch.get_rng_state().tolist() if self.cohort.device.type == "cuda" else None
        return [random.getstate(), numpy[1].tolist(), numpy[2], torch_state]

    def _not_replayed(self, model: nn.Module, buffers: dict[str, Tensor], drew: bool) -> str:
        """What a step did that CUDA graphs would not repeat, given the buffers before it; empty: nothing."""
        after = dict(model.named_buffers())
        replaced = [name for name in buffers | after if buffers.get(name) is not after.get(name)]
        attributes = [name for name in _attributes_that_differ(self.cohort.model, model) if name not in after]
        if changed := replaced + attributes:
            return f"the change of {', '.join(changed[:MOST_NAMES])} in each step"
        return "random numbers drawn on the CPU" if drew else ""

    def _step(self, member: Member, step: int) -> Tensor:
        self._seed(step)
        with explained("batches", (self.inputs, self.targets), member.model, self.loss, member.accumulate):
            return member.step(self.inputs, self.targets, self.loss, 1.0)

    def _check_original(self) -> None:
        """Whether a copy uses its own weights alone: one that uses the original's leaves gradients there."""
        for name, parameter in self.cohort.model.named_parameters():
            if parameter.grad is not None:
                allowed = (
                    "a function whose model can be copied; the copy uses the original's "
                    f"{plain_name(name)}, perhaps in a lambda or closure (use a method)"
                )
                raise ArgumentError("build_model", type(self.cohort.model).__name__, allowed)

    def _check_replica(self, member: Member, loss: Tensor) -> None:
        """Whether a second copy ends the step where the first does, bit for bit."""
        replica = self._member()
        same_loss = _same(loss, self._step(replica, 0))
        differing = _differing(member.model, replica.model)
        if same_loss and not differing:
            return
        outputs = [self._outputs_of_modules() for _ in range(2)]
        module = next((name for name in outputs[0] if not _same_outputs(*(each.get(name) for each in outputs))), None)
        if module is not None:
            argument, where = "build_model", f"first in the output of {module}"
        elif not same_loss:
            argument, where = "loss", "in the loss"
        else:
            argument, where = "optimizer", f"first in {differing[0]} after the optimizer's step"
        allowed = (
            f"one that repeats itself: two copies with the same seed, trained on the same batch, differ {where} "
            "(it may draw from a generator that is not seeded, or keep state outside the model)"
        )
        if self.cohort.device.type == "cpu":
            given = {"loss": self.loss, "optimizer": type(member.optimizer).__name__}
            raise ArgumentError(argument, given.get(argument, type(member.model).__name__), allowed)
        log.warning("%s is not %s", argument, allowed)  # kernels of a GPU need not be deterministic

    def _outputs_of_modules(self) -> dict[str, Any]:
        """What each module returns in a forward pass of a new copy, by name and type, in the order of their ends."""
        member = self._member()
        outputs: dict[str, Any] = {}
        for name, module in member.model.named_modules():
            label = f"{name or 'the model'} ({type(module).__name__})"
            module.register_forward_hook(lambda _, __, output, label=label: outputs.setdefault(label, output))
        self._seed(0)
        with torch.no_grad(), member.weights.quantized():
            member.model(self.inputs.clone())
        return outputs

    def _check_resume(self, member: Member) -> None:
        """Whether a copy that loads the state of ``member`` makes the same next step; otherwise warns."""
        resumed = self._member()
        try:
            resumed.load_state_dict(copy.deepcopy(member.state_dict()))
        except Exception as error:  # a foreign state_dict may raise anything
            reason = f"its state_dict cannot be loaded ({of_error(error)})"
        else:
            outside = _attributes_that_differ(member.model, resumed.model)
            losses = [self._step(each, 1) for each in (member, resumed)]
            if _same(*losses) and not _differing(member.model, resumed.model):
                return
            names = f" ({', '.join(outside[:MOST_NAMES])})" if outside else ""
            reason = f"the model keeps state outside its state_dict{names}"
        log.warning("if this run is interrupted and resumed, its numbers will differ: %s", reason)

    def _needs_gradients(self, member: Member, validation: Iterable[Batch]) -> bool:
        """Whether evaluation takes derivatives; tried on the first validation batch."""
        batch = self._first_of(validation)
        if batch is None:
            if self.cohort.layout.ranks.size > 1:  # the other ranks may have some
                return False
            raise ArgumentError("validation", validation, "batches that have inputs")
        if isinstance(validation, Iterator):  # one that starts again is fine
            again = self._first_of(validation)
            if again is None or not _same_outputs(batch, again):
                raise ArgumentError("validation", validation, "a list or loader that can be iterated again")
        inputs, targets = batch
        with member.evaluating(), torch.no_grad():
            for gradients in (False, True):
                member.needs = replace(member.needs, gradients=gradients)
                try:
                    checked_loss(self.loss, member.predict(inputs), targets.clone())
                    return gradients
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # a foreign model may raise anything
                    continue
            check_batch("validation", batch, member.model, self.loss)
        raise ArgumentError("validation", tuple(inputs.shape), "batches on which the loss can be computed")

    def _first_of(self, validation: Iterable[Batch]) -> Batch | None:
        return next(on_device(seeded(validation, self.seed), self.cohort.device, "validation"), None)


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: (values.shape, values.dtype) for name, values in model.state_dict().items()}


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _same_outputs(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=False)
    return all(_same(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _differing(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of the parameters and buffers that differ."""
    tensors = [dict([*model.named_parameters(), *model.named_buffers()]) for model in (a, b)]
    names = tensors[0] | tensors[1]
    return [
        plain_name(name)
        for name in names
        if any(name not in each for each in tensors) or not _same(tensors[0][name], tensors[1][name])
    ]


def _attributes_that_differ(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of the attributes and non-persistent buffers of two copies that differ, as far as they can be compared."""
    names = []
    for (name, first), second in zip(a.named_modules(), b.modules(), strict=True):
        for attribute in _state_outside(first):
            values = [getattr(module, attribute, None) for module in (first, second)]
            if not _equal(*values):
                names.append(f"{name}.{attribute}".lstrip("."))
    return names


def _state_outside(module: nn.Module) -> Iterator[str]:
    plain = {*vars(nn.Module()), "parametrizations"}
    yield from (attribute for attribute in vars(module) if attribute not in plain)
    yield from module._non_persistent_buffers_set


def _equal(a: Any, b: Any) -> bool:
    a, b = (each.get_state() if isinstance(each, torch.Generator) else each for each in (a, b))
    a, b = (each.bit_generator.state if isinstance(each, np.random.Generator) else each for each in (a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _same(a, b)
    if not isinstance(a, PLAIN):
        return True  # others may compare by identity
    try:
        return bool(a == b)
    except Exception:  # a foreign comparison may raise anything
        return True

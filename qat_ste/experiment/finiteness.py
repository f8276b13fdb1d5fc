"""Stops a run at NaN or infinity before they are reported or saved; names step, member and tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from qat_ste.experiment.member import Member
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.fake_quant.fake_quantize import plain_name

HINT = "A smaller learning rate may help"


class FinitenessCheck:
    """Checks losses, weights, buffers and optimizer states; tensors not finite at the start, as masks, are exempt.

    Args:
        step: number of steps done already.
    """

    def __init__(self, monitor: DivergenceMonitor, step: int) -> None:
        self._monitor, self._cohort, self._step = monitor, monitor.cohort, step
        self._never = {number: set(_not_finite(member)) for number, member in self._cohort.local.items()}

    def check(self, losses: Tensor, step: int) -> None:
        """Checks everything after ``step`` steps; ``losses`` are members x steps, on this rank's share of a batch.

        Raises:
            FloatingPointError: on all ranks, if something is not finite.
        """
        if step == self._step:
            return
        first, self._step = self._step, step
        recent = self._cohort.layout.over_batch(losses[:, first:step])
        bad = (~torch.isfinite(recent)).nonzero()
        if len(bad):
            number, offset = bad[bad[:, 1].argmin()].tolist()
            at = first + offset + 1
            hint = HINT if at > 1 else "No step was made before it: look at the first batch"
            self._raise(number, f"the loss of {{}} is {recent[number, offset].item()} at step {at}", hint)
        flags = [bool(self._not_finite_names(number)) for number in range(len(self._cohort.specs))]
        flags = self._cohort.layout.ranks.any(flags)
        if any(flags):
            number = flags.index(True)
            since = f"after step {step}" if step == first + 1 else f"between steps {first + 1} and {step}"
            self._raise(number, f"a weight of {{}} or its optimizer's state is no longer finite {since}")

    def _raise(self, number: int, problem: str, hint: str = HINT) -> None:
        name = next(name for name, candidate in self._cohort.names.items() if candidate == number)
        tensor = next(iter(self._not_finite_names(number)), "none")
        raise FloatingPointError(f"{problem.format(name)}; first tensor that is not finite by now: {tensor}. {hint}")

    def _not_finite_names(self, number: int) -> list[str]:
        member, trajectory = self._cohort.local.get(number), self._monitor.trajectories[number]
        names = [name for name in _not_finite(member) if name not in self._never[number]] if member else []
        if not names and not trajectory.path.isfinite().all():  # the weights are huge, or were since the last check
            chunk = trajectory.chunks[int(trajectory.path.isfinite().int().argmin())]
            names.append(f"the way of {self._cohort.tensors[chunk.tensor].name}")
        return names


def check_row(row: Mapping[str, Any]) -> None:
    """Raises FloatingPointError if a number in a row of metrics is not finite."""
    for key, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(f"{key} is {value} at step {row['step']}. {HINT}")


def _not_finite(member: Member) -> list[str]:
    """Names of the tensors that are not finite."""
    tensors = {name: values for name, values in _tensors(member) if values.is_floating_point()}
    # One sum is faster than testing every number, and waits for a GPU only once.
    total = sum((values.sum() for values in tensors.values()), start=torch.zeros(()))
    if total.isfinite():
        return []
    return [name for name, values in tensors.items() if not values.isfinite().all()]


def _tensors(member: Member) -> Iterator[tuple[str, Tensor]]:
    names = {}
    for name, parameter in member.model.named_parameters():
        names[id(parameter)] = plain_name(name)
        yield plain_name(name), parameter.detach()
    if (scales := member.weights.scales) is not None:
        for number, values in scales.values.items():
            names[id(values)] = f"the scale of {scales.tensors[number].name}"
            yield names[id(values)], values.detach()
    yield from member.model.named_buffers()
    for stepped, state in member.optimizer.state.items():
        for key, values in state.items():
            if isinstance(values, Tensor):
                yield f"{key} of {names[id(stepped)]}", values

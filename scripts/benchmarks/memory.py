"""Memory that the metrics hold between steps, in bytes per quantized weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qat_ste.base.sections import Quantization
from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.fake_quant.fake_quantize import quantize_weights

from .networks import COUNTERPARTS, LR, OPTIMIZER, Members, Setting
from .scaling import one_layer
from .timing import Figure, Stopwatch

WIDTH = 1000  # of the layer whose metrics are measured


def held(monitor: DivergenceMonitor) -> int:
    """Returns the bytes of all tensors and arrays reachable from the monitor, without those of training itself."""
    cohort = monitor.cohort
    trained = {id(cohort), *(id(member) for member in cohort.local.values())}
    trained |= {values.untyped_storage().data_ptr() for values in cohort.slices}
    return sum(_buffers(monitor, trained))


def _buffers(value: Any, seen: set[int]) -> Iterator[int]:
    """Yields the bytes of each buffer once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage.nbytes()
    elif isinstance(value, np.ndarray):
        yield value.nbytes if value.base is None else 0
        yield from _buffers(value.base, seen)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _buffers(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _buffers(vars(value), seen)


def held_by(members: int, kept: int, width: int = WIDTH) -> int:
    """Returns the bytes held by the metrics of members of one layer, with sequences of ``kept`` weights."""
    estimator = Tanh(5.5)
    model = quantize_weights(one_layer(width), Quantization(include=["Linear"]), estimator)
    cohort = Cohort(model, estimator, OPTIMIZER, LR, COUNTERPARTS[: members - 1]).make_members()
    return held(DivergenceMonitor(cohort, kept, seed=0))


def bytes_a_weight(width: int = WIDTH) -> dict[str, float]:
    """Returns bytes per weight of the reference, of each counterpart, and per kept weight of each member."""
    weights, few, many = width * width, 1, width * width // 2
    by_members = [held_by(members, few, width) for members in (1, 2, 3)]
    kept = (held_by(2, many, width) - by_members[1]) / 2 / (many - few)
    return {
        "of the reference": by_members[0] / weights,
        "of each counterpart": (by_members[2] - by_members[1]) / weights,
        "of each member, for kept sequences": kept,
    }


def bytes_a_member(scale: str, granularity: str | int, counterparts: Sequence[str], width: int = WIDTH) -> float:
    """Returns bytes per weight that the last counterpart adds to training and metrics, between steps."""
    totals = []
    for names in (counterparts[:-1], counterparts):
        estimator = Tanh(5.5)
        quantization = Quantization(include=["Linear"], scale=scale, granularity=granularity)
        model = quantize_weights(one_layer(width), quantization, estimator)
        cohort = Cohort(model, estimator, OPTIMIZER, LR, list(names)).make_members()
        monitor = DivergenceMonitor(cohort, 1, seed=0)
        for step in (1, 2):
            for member in cohort.local.values():
                member.step(torch.ones(1, width), torch.zeros(1, dtype=torch.long), cross_entropy, 1.0)
                member.optimizer.zero_grad()
            monitor.observe(step, cohort.levels())
        totals.append(sum(_buffers([monitor, cohort], set())))
    return (totals[1] - totals[0]) / width / width


def bytes_of_setting(setting: Setting, quantization: Quantization) -> Figure:
    """Returns bytes per weight that the third member adds to training and metrics, between steps."""
    totals = []
    for members in (2, 3):
        trained = Members(
            setting.build(), members, setting.batch(), Stopwatch(), True, quantization=quantization, **setting.training
        )
        for _ in range(2):
            trained.step()
        for member in trained.cohort.local.values():
            member.optimizer.zero_grad()
        totals.append(sum(_buffers([trained.monitor, trained.cohort], set())))
    weights = sum(parameter.numel() for parameter in setting.build().parameters())
    levels = quantization.levels or f"{quantization.bits} bits"
    return Figure(f"{setting}, {levels}", "bytes a weight and member", "B", round((totals[1] - totals[0]) / weights, 1))


def bytes_held() -> list[Figure]:
    """Returns ``bytes_a_weight`` as figures, without quartiles: they are exact."""
    return [Figure("bytes per weight", what, "B", round(value, 2)) for what, value in bytes_a_weight().items()]

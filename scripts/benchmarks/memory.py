"""What the metrics hold between steps, in bytes a quantized weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.fake_quant.fake_quantize import quantize_weights

from .networks import COUNTERPARTS, LR, OPTIMIZER
from .scaling import one_layer
from .timing import Figure

WIDTH = 1000  # of the layer whose metrics are weighed


def held(monitor: DivergenceMonitor) -> int:
    """Bytes of all tensors and arrays below the monitor, but for those that training has anyway."""
    cohort = monitor.cohort
    trained = {id(cohort), *(id(member) for member in cohort.local.values())}
    trained |= {values.untyped_storage().data_ptr() for values in cohort.slices}
    return sum(_buffers(monitor, trained))


def _buffers(value: Any, seen: set[int]) -> Iterator[int]:
    """Each buffer once."""
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
    """Bytes that the metrics of so many members of one layer hold, ``kept`` weights' sequences among them."""
    estimator = Tanh(5.5)
    model = quantize_weights(one_layer(width), 2, estimator)
    cohort = Cohort(model, estimator, OPTIMIZER, LR, COUNTERPARTS[: members - 1]).make_members()
    return held(DivergenceMonitor(cohort, kept, seed=0))


def bytes_a_weight(width: int = WIDTH) -> dict[str, float]:
    """Bytes a weight: of the reference, of each further member and its pair, and a kept weight of each member."""
    weights, few, many = width * width, 1, width * width // 2
    by_members = [held_by(members, few, width) for members in (1, 2, 3)]
    kept = (held_by(2, many, width) - by_members[1]) / 2 / (many - few)
    return {
        "of the reference": by_members[0] / weights,
        "of each counterpart": (by_members[2] - by_members[1]) / weights,
        "of each member, where sequences are kept": kept,
    }


def bytes_held() -> list[Figure]:
    """``bytes_a_weight`` as figures; they do not spread."""
    return [Figure("bytes a weight", what, "B", round(value, 2)) for what, value in bytes_a_weight().items()]

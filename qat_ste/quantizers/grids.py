"""Quantizers on any grid of levels, and the grids that have a name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from qat_ste.base.text import of_value
from qat_ste.quantizers.quantizer import Quantizer, UniformQuantizer, check_latent

_E2M1 = (0.5, 1, 1.5, 2, 3, 4, 6)
_POWERS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625)  # sums of one of {0, 1/2, 1/4, 1/16} and one of {0, 1/8}
GRIDS: dict[str, tuple[float, ...]] = {
    "ternary": (-1, 0, 1),
    # Four-bit floats of the OCP Microscaling Formats specification (2023): two bits of exponent, one of mantissa.
    "fp4_e2m1": (*(-x for x in reversed(_E2M1)), 0, *_E2M1),
    # Quantiles of the normal distribution (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E).
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # Additive powers of two with four bits, one of them the sign (Li et al. 2020, arXiv 1909.13144).
    "apot": (*(-x for x in reversed(_POWERS)), 0, *_POWERS),
}  # fmt: skip
MOST_LEVELS = 2**16


class GridQuantizer(Quantizer):
    """Any sorted levels, thresholds midway between neighbours; a weight's interval is that between two levels.

    Only the ratios of the levels count: they are scaled so that the largest |level| is ``max``. Estimators see the
    offset u in widths of the interval, so that g has the same shape in each. Then one α serves all of them: α is
    the harmonic mean of g over u, which knows no width, and M(w) = t + Δ_i·α·∫ du/g has the slope α/g in the
    interval of width Δ_i around t. M is continuous at a level between intervals of different width if it leaves
    the level where it is, which takes ∫ du/g to be the same on either side of u = 0: g even in u.

    Args:
        levels: a name of ``GRIDS``, or at least two different finite numbers in ascending order.
        max, saturation: as for every ``Quantizer``.

    Raises:
        ValueError: an argument is out of its bounds.
    """

    def __init__(self, levels: str | Sequence[float], max: float | Tensor, saturation: str = "range") -> None:
        super().__init__(max, saturation)
        self._levels = _checked(levels)
        self.num_levels = len(self._levels)
        self._values: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def with_max(self, max: float | Tensor) -> GridQuantizer:
        return GridQuantizer(self._levels, max, self.saturation)

    @property
    def state(self) -> dict[str, Any]:
        return {"levels": self._levels, "max": self.max, "saturation": self.saturation}

    @property
    def levels(self) -> Tensor:
        return self._default_values()[0]

    @property
    def thresholds(self) -> Tensor:
        return self._default_values()[1]

    def index(self, w: Tensor) -> Tensor:
        return _passed(self._values_in(w.dtype, w.device)[1], w)

    def level(self, index: Tensor) -> Tensor:
        return _pick(self._values_in(index.dtype, index.device)[0], index.long())

    def __call__(self, w: Tensor) -> Tensor:
        return torch.where(w.isnan(), w, self.level(self.index(w)))

    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        max_ = self.max.double() if isinstance(self.max, Tensor) else self.max
        offset, threshold, width = self._interval(w.double() / max_)
        return offset, threshold * max_, width * max_

    def offset(self, w: Tensor) -> Tensor:
        return self._interval(self.relative(w))[0]

    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        levels = self._values_in(w.dtype, w.device)[0]
        if saturation == "bin":
            return 1.5 * levels[0] - 0.5 * levels[1], 1.5 * levels[-1] - 0.5 * levels[-2]
        return levels[0], levels[-1]

    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        thresholds = self._values_in(w.dtype, w.device)[1]
        infinite = torch.full_like(thresholds[:1], math.inf)
        lowest = torch.cat([-infinite, thresholds])
        highest = torch.cat([torch.nextafter(thresholds, -infinite), infinite])
        number = self.index(w).long()
        return _pick(lowest, number), _pick(highest, number)

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset, threshold and width of the interval of each x = w/max."""
        levels = torch.tensor(self._levels, dtype=x.dtype, device=x.device)
        number = _passed(levels[1:-1], x).long()
        width = levels.diff()[number]
        threshold = (levels[:-1] + levels[1:]).div_(2)[number]
        offset = (x - threshold).div_(width)
        repeats = offset.round().masked_fill_((x >= levels[0]) & (x <= levels[-1]), 0)
        return offset.sub_(repeats), threshold.addcmul_(repeats, width), width

    def _values_in(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels and thresholds of weights of that dtype, each rounded once."""
        check_latent(dtype)
        if (dtype, device) not in self._values:
            max_ = torch.as_tensor(self.max, dtype=torch.float64, device=device)
            levels = torch.tensor(self._levels, dtype=torch.float64, device=device).reshape(-1, *[1] * max_.ndim)
            thresholds = (levels[:-1] + levels[1:]) / 2
            self._values[dtype, device] = (levels * max_).to(dtype), (thresholds * max_).to(dtype)
        return self._values[dtype, device]

    def _default_values(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.max, Tensor):
            return self._values_in(self.max.dtype, self.max.device)
        return self._values_in(torch.get_default_dtype(), torch.device("cpu"))


def make_quantizer(
    max: float | Tensor,
    saturation: str = "range",
    *,
    bits: int = 2,
    levels: str | Sequence[float] | None = None,
) -> Quantizer:
    """The quantizer with these levels, or where there are none with 2^bits equally spaced ones.

    Raises:
        ValueError: an argument is out of its bounds.
    """
    if levels is None:
        return UniformQuantizer(bits, max, saturation)
    return GridQuantizer(levels, max, saturation)


def _passed(thresholds: Tensor, x: Tensor) -> Tensor:
    """How many of the ascending thresholds each x has reached, in the dtype of ``x``."""
    if thresholds.ndim == 1 and len(thresholds) > 64:
        return torch.bucketize(x, thresholds, out_int32=True, right=True).to(x.dtype)
    count = torch.zeros_like(x)
    for threshold in thresholds:  # while they are few, faster than a search for each x
        count += x.clone().ge_(threshold)
    return count


def _pick(values: Tensor, number: Tensor) -> Tensor:
    """Entry ``number`` along the first dimension, where the others broadcast against it."""
    if values.ndim == 1:
        return values[number]
    missing = [1] * (number.ndim + 1 - values.ndim)
    return values.reshape(len(values), *missing, *values.shape[1:]).expand(-1, *number.shape).gather(0, number[None])[0]


def _checked(levels: str | Sequence[float]) -> tuple[float, ...]:
    """The levels in units of the largest."""
    if isinstance(levels, str):
        if levels not in GRIDS:
            raise ValueError(f"levels must be one of {', '.join(GRIDS)}, or a list of numbers, got {of_value(levels)}")
        levels = GRIDS[levels]
    if isinstance(levels, Mapping | Set) or not isinstance(levels, Iterable):
        raise ValueError(f"levels must be one of {', '.join(GRIDS)}, or a list of numbers, got {of_value(levels)}")
    levels = list(levels)
    numbers = [isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x) for x in levels]
    if not (2 <= len(levels) <= MOST_LEVELS and all(numbers) and all(low < high for low, high in pairwise(levels))):
        raise ValueError(f"levels must be at least two finite numbers in ascending order, got {of_value(levels)}")
    end = max(abs(levels[0]), abs(levels[-1]))
    return tuple(float(x) / end for x in levels)

"""Quantizers on any grid of levels, and named grids."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError, Number, OneOf, require
from qat_ste.base.sections import TIES
from qat_ste.quantizers.quantizer import Quantizer, UniformQuantizer, check_latent

_E2M1 = (0.5, 1, 1.5, 2, 3, 4, 6)
_POWERS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625)  # sums of one of {0, 1/2, 1/4, 1/16} and one of {0, 1/8}
GRIDS: dict[str, tuple[float, ...]] = {
    "ternary": (-1, 0, 1),
    # 4-bit floats of the OCP Microscaling Formats specification (2023): two exponent bits, one mantissa bit.
    "fp4_e2m1": (*(-x for x in reversed(_E2M1)), 0, *_E2M1),
    # Quantiles of the normal distribution (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E).
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    # Additive powers of two with four bits, sign included (Li et al. 2020, arXiv 1909.13144).
    "apot": (*(-x for x in reversed(_POWERS)), 0, *_POWERS),
    "int4": tuple(range(-7, 8)),  # symmetric: without -8
}  # fmt: skip
MOST_LEVELS = 2**16


class GridQuantizer(Quantizer):
    """Rounds to the nearest of any sorted levels.

    Only the ratios of the levels matter: they are scaled so that the largest |level| is ``max``. The offset u that
    estimators get is in units of the interval's width, so g has the same shape in each interval and one α holds for
    all: α is the harmonic mean of g over u, which does not depend on the width. M(w) = t + Δ_i·α·∫ du/g has slope
    α/g in the interval of width Δ_i around the threshold t. Where neighbouring widths differ, M is continuous only
    if it leaves the level between them in place; this requires g to be even in u.

    Args:
        levels: a name in ``GRIDS``, or at least two finite numbers in strictly ascending order.
        max, saturation: see ``Quantizer``.
        ties: where a weight on a threshold goes. ``up``: to the upper level; ``even``: to the level that is an even
            number of levels from 0, which is IEEE 754's round half to even for integers and floats.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """

    def __init__(
        self, levels: str | Sequence[float], max: float | Tensor, saturation: str = "range", ties: str = "up"
    ) -> None:
        super().__init__(max, saturation)
        require(OneOf(TIES), ties=ties)
        self._levels, self.ties = _relative_levels(levels), ties
        if ties == "even" and 0 not in self._levels:
            raise ArgumentError("ties", ties, "up for levels without 0")
        self.num_levels = len(self._levels)
        self._cache: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self._relative: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def with_max(self, max: float | Tensor) -> GridQuantizer:
        return GridQuantizer(self._levels, max, self.saturation, self.ties)

    def rescaled(self, max: Tensor) -> GridQuantizer:
        other = copy.copy(self)
        other.max, other._cache = max, {}
        return other

    @property
    def state(self) -> dict[str, Any]:
        # Without the default, states are those of versions that had no ``ties``.
        ties = {} if self.ties == "up" else {"ties": self.ties}
        return {"levels": self._levels, "max": self.max, "saturation": self.saturation, **ties}

    @property
    def levels(self) -> Tensor:
        return self._in_default_dtype()[0]

    @property
    def thresholds(self) -> Tensor:
        return self._in_default_dtype()[1]

    def index(self, w: Tensor) -> Tensor:
        return _count_reached(self._in_dtype(w.dtype, w.device)[1], w)

    def level(self, index: Tensor) -> Tensor:
        return _at_index(self._in_dtype(index.dtype, index.device)[0], index.long())

    def __call__(self, w: Tensor) -> Tensor:
        return torch.where(w.isnan(), w, self.level(self.index(w)))

    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        max_ = self.max.double() if isinstance(self.max, Tensor) else self.max
        offset, threshold, width = self._interval(w.double() / max_)
        return offset, threshold * max_, width * max_

    def offset(self, w: Tensor) -> Tensor:
        return self._interval(self.relative(w))[0]

    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        levels = self._in_dtype(w.dtype, w.device)[0]
        if saturation == "bin":
            return 1.5 * levels[0] - 0.5 * levels[1], 1.5 * levels[-1] - 0.5 * levels[-2]
        return levels[0], levels[-1]

    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        thresholds = self._in_dtype(w.dtype, w.device)[1]
        infinite = torch.full_like(thresholds[:1], math.inf)
        lowest = torch.cat([-infinite, thresholds])
        highest = torch.cat([torch.nextafter(thresholds, -infinite), infinite])
        index = self.index(w).long()
        return _at_index(lowest, index), _at_index(highest, index)

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offset, threshold and width of the interval that contains each x = w/max."""
        levels = self._relative_in(x.dtype, x.device)
        index = _count_reached(levels[1:-1], x).long()
        width = levels.diff()[index]
        threshold = (levels[:-1] + levels[1:]).div_(2)[index]
        offset = (x - threshold).div_(width)
        repeats = offset.round().masked_fill_((x >= levels[0]) & (x <= levels[-1]), 0)
        return offset.sub_(repeats), threshold.addcmul_(repeats, width), width

    def _relative_in(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Levels over max; made once, since copying them to a GPU waits for it."""
        if (dtype, device) not in self._relative:
            self._relative[dtype, device] = torch.tensor(self._levels, dtype=dtype, device=device)
        return self._relative[dtype, device]

    def _in_dtype(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels and thresholds for weights of this dtype, each rounded once.

        If a tie goes to the lower level, the threshold is the next larger number.
        """
        check_latent(dtype)
        if (dtype, device) not in self._cache:
            max_ = torch.as_tensor(self.max, dtype=torch.float64, device=device)
            levels = torch.tensor(self._levels, dtype=torch.float64, device=device).reshape(-1, *[1] * max_.ndim)
            thresholds = ((levels[:-1] + levels[1:]) / 2 * max_).to(dtype)
            if self.ties == "even":
                first = self._levels.index(0) % 2  # threshold i lies between levels i and i + 1
                lowered, following = thresholds[first::2], thresholds[first + 1 :: 2]
                lowered.copy_(torch.nextafter(lowered, torch.full_like(lowered, math.inf)))
                # A tiny ``max`` can make thresholds equal; they must stay in order.
                torch.maximum(following, lowered[: len(following)], out=following)
            self._cache[dtype, device] = (levels * max_).to(dtype), thresholds
        return self._cache[dtype, device]

    def _in_default_dtype(self) -> tuple[Tensor, Tensor]:
        if isinstance(self.max, Tensor):
            return self._in_dtype(self.max.dtype, self.max.device)
        return self._in_dtype(torch.get_default_dtype(), torch.device("cpu"))


def make_quantizer(
    max: float | Tensor,
    saturation: str = "range",
    *,
    bits: int = 2,
    levels: str | Sequence[float] | None = None,
    ties: str = "up",
) -> Quantizer:
    """Returns the quantizer with these levels or, without ``levels``, with 2^bits equally spaced ones.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """
    if levels is not None:
        return GridQuantizer(levels, max, saturation, ties)
    if ties != "up":
        raise ArgumentError("ties", ties, "up for 2^bits levels, which do not include 0")
    return UniformQuantizer(bits, max, saturation)


def _count_reached(thresholds: Tensor, x: Tensor) -> Tensor:
    """Counts the thresholds that are <= each x, in the dtype of ``x``."""
    if thresholds.ndim == 1 and len(thresholds) > 64:
        return torch.bucketize(x, thresholds, out_int32=True, right=True).to(x.dtype)
    count = torch.zeros_like(x)
    for threshold in thresholds:  # with few thresholds, faster than a binary search
        count += x.clone().ge_(threshold)
    return count


def _at_index(values: Tensor, index: Tensor) -> Tensor:
    """Selects entries along the first dimension; the other dimensions broadcast against ``index``."""
    if values.ndim == 1:
        return values[index]
    missing = [1] * (index.ndim + 1 - values.ndim)
    return values.reshape(len(values), *missing, *values.shape[1:]).expand(-1, *index.shape).gather(0, index[None])[0]


def largest_level(levels: str | Sequence[float]) -> float:
    """The largest |level| of a grid in its own units, as 6 of E2M1.

    Raises:
        ArgumentError: the levels are not allowed.
    """
    listed = _listed_levels(levels)
    return float(max(abs(listed[0]), abs(listed[-1])))


def _relative_levels(levels: str | Sequence[float]) -> tuple[float, ...]:
    """Checks the levels and divides them by the largest |level|."""
    listed, largest = _listed_levels(levels), largest_level(levels)
    return tuple(float(level) / largest for level in listed)


def _listed_levels(levels: str | Sequence[float]) -> list[Any]:
    if isinstance(levels, str) and levels in GRIDS:
        levels = GRIDS[levels]
    if isinstance(levels, str | Mapping | Set) or not isinstance(levels, Iterable):
        raise ArgumentError("levels", levels, f"one of {', '.join(GRIDS)}, or a list of numbers")
    levels = list(levels)
    finite = all(level in Number(real=True) for level in levels)
    if not (2 <= len(levels) <= MOST_LEVELS and finite and all(low < high for low, high in pairwise(levels))):
        raise ArgumentError("levels", levels, "at least two finite numbers in ascending order")
    return levels

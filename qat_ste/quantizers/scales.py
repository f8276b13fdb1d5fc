"""Scales of grids: the factor on their levels, by tensor, by channel or by group of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import POSITIVE, ArgumentError

NAMES, PERCENTILE = ("he", "initial_absmax", "initial_mse"), "initial_percentile"
Rounding = Callable[[Tensor], Tensor]  # of weights in units of the scale, to levels in the same units
CANDIDATES = 100  # scales that are tried for the least squared error


def he_uniform_bound(w: Tensor) -> float:
    """Returns √(6 / fan_in), the end of the range in arXiv 2405.05171; for a bias, fan_in is its length."""
    fan_in = w.numel() if w.ndim == 1 else nn.init._calculate_fan_in_and_fan_out(w)[0]
    return math.sqrt(6 / fan_in)


@dataclass(frozen=True)
class Grouping:
    """The weights of one tensor that share a scale: consecutive ones, ``size`` of them, in a tensor of ``shape``."""

    shape: torch.Size
    size: int

    @classmethod
    def of(cls, granularity: str | int, w: Tensor) -> Grouping:
        """The groups of a tensor; one of a single dimension, as a bias, is one group.

        Args:
            granularity: ``tensor``, ``channel`` (first dimension), or n: groups of n along all other dimensions.

        Raises:
            ArgumentError: n does not divide the weights of a channel. Nothing is padded.
        """
        if granularity == "tensor" or w.ndim < 2:
            return cls(w.shape, w.numel())
        per_channel = w.numel() // len(w)
        if granularity == "channel":
            return cls(w.shape, per_channel)
        size = int(granularity)
        if per_channel % size:
            divisors = [n for n in range(1, per_channel + 1) if per_channel % n == 0]
            nearest = min(divisors, key=lambda n: abs(math.log(n / size)))
            allowed = f"tensor, channel, or a divisor of {per_channel}, the weights of a channel, as {nearest}"
            raise ArgumentError("granularity", granularity, allowed)
        return cls(w.shape, size)

    def rows(self, w: Tensor) -> Tensor:
        """The weights with one row per group."""
        return w.reshape(-1, self.size)

    def spread(self, scales: Tensor) -> Tensor:
        """One scale per group as a tensor that broadcasts to the weights."""
        if len(scales) == 1:
            return scales[0]
        if len(scales) == self.shape[0]:
            return scales.reshape(-1, *[1] * (len(self.shape) - 1))
        return scales.repeat_interleave(self.size).reshape(self.shape)


@dataclass(frozen=True)
class InitialScale:
    """A scale that is taken once from the initial weights, by name.

    ``he``: the He-uniform bound of the whole tensor, whatever the granularity; ``initial_absmax``: the largest |w| of
    a group; ``initial_percentile_<percent>``: so many of a group lie within it; ``initial_mse``: the least Σ(q(w) - w)²
    of ``CANDIDATES`` fractions of the largest |w|.
    """

    name: str
    percent: float = 100.0

    def of(self, w: Tensor, grouping: Grouping, rounding: Rounding) -> float | Tensor:
        """The scale of one tensor: a number for one group, else a tensor that broadcasts to the weights.

        Raises:
            ArgumentError: a group has zeros alone.
        """
        if self.name == "he":
            return he_uniform_bound(w)
        rows = grouping.rows(w.detach().double())
        largest = rows.abs().amax(1)
        if (zero := (largest == 0).nonzero().flatten()).numel():
            allowed = f"a scale that does not depend on the weights, as he: group {int(zero[0])} has zeros alone"
            raise ArgumentError("scale", self.name, allowed)
        if self.name == "initial_percentile":
            inside = max(1, math.ceil(rows.shape[1] * self.percent / 100))
            largest = rows.abs().kthvalue(inside, dim=1).values.clamp(min=torch.finfo(w.dtype).tiny)
        elif self.name == "initial_mse":
            largest = _least_squares(rows, largest, rounding)
        scales = largest.to(w.dtype)
        return scales.item() if len(scales) == 1 else grouping.spread(scales)


def _least_squares(rows: Tensor, largest: Tensor, rounding: Rounding) -> Tensor:
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for fraction in torch.linspace(1 / CANDIDATES, 1, CANDIDATES, dtype=torch.float64).tolist():
        scales = (largest * fraction)[:, None]
        error = (rounding(rows / scales) * scales - rows).square().sum(1)
        best = torch.where(error < least, scales[:, 0], best)
        least = torch.minimum(error, least)
    return best


def scale_of(scale: Any) -> float | InitialScale:
    """A number, or the scale with this name.

    Raises:
        ArgumentError: there is no such scale.
    """
    if scale in POSITIVE:
        return float(scale)
    if scale in NAMES:
        return InitialScale(scale)
    percent = scale.removeprefix(f"{PERCENTILE}_") if isinstance(scale, str) else ""
    if percent != scale and re.fullmatch(r"\d+(\.\d+)?", percent) and 0 < float(percent) <= 100:
        return InitialScale(PERCENTILE, float(percent))
    raise ArgumentError("scale", scale, f"a positive number, {', '.join(NAMES)} or {PERCENTILE}_<percent>")

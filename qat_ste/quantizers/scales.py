"""Scales of grids: the factor on their levels, by tensor, by channel or by group of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError, Number

NAMES, PERCENTILE = ("he", "initial_absmax", "initial_mse"), "initial_percentile"
MOVING, RMS = ("absmax", "msamp_power", "mx_power"), "rms"
FIXED = Number(1e-6, 1e6, real=True)
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
        _refuse_zeros(self.name, rows)
        if self.name == "initial_percentile":
            inside = max(1, math.ceil(rows.shape[1] * self.percent / 100))
            largest = rows.abs().kthvalue(inside, dim=1).values.clamp(min=torch.finfo(w.dtype).tiny)
        elif self.name == "initial_mse":
            largest = _least_squares(rows, largest, rounding)
        scales = largest.to(w.dtype)
        return scales.item() if len(scales) == 1 else grouping.spread(scales)


def _refuse_zeros(name: str, rows: Tensor) -> None:
    if (zero := (rows == 0).all(1).nonzero().flatten()).numel():
        allowed = f"a scale that does not depend on the weights, as he: group {int(zero[0])} has zeros alone"
        raise ArgumentError("scale", name, allowed)


def _least_squares(rows: Tensor, largest: Tensor, rounding: Rounding) -> Tensor:
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for fraction in torch.linspace(1 / CANDIDATES, 1, CANDIDATES, dtype=torch.float64).tolist():
        scales = (largest * fraction)[:, None]
        error = (rounding(rows / scales) * scales - rows).square().sum(1)
        best = torch.where(error < least, scales[:, 0], best)
        least = torch.minimum(error, least)
    return best


@dataclass(frozen=True)
class MovingScale:
    """A scale that is computed anew from the weights after each step, detached, by name.

    ``absmax``: the largest |w| of a group. ``rms_<factor>``: factor·√mean(w²). Powers of two, of a grid whose levels
    reach ``largest`` in its own units: ``msamp_power``, that of MS-AMP, 2^-floor(log2(largest/absmax)), with which no
    weight saturates; ``mx_power``, that of OCP's Microscaling formats, 2^(floor(log2 absmax) - floor(log2 largest)),
    with which some can. A group of zeros alone has the smallest scale that its type can hold.
    """

    name: str
    factor: float = 1.0
    largest: float = 1.0

    @property
    def kept(self) -> bool:
        """Whether the scale is that of M(w) too, where M keeps the outermost levels."""
        return self.name == "absmax"

    def now(self, rows: Tensor) -> Tensor:
        """The scale of each row of weights."""
        scales = rows.square().mean(1).sqrt() * self.factor if self.name == RMS else rows.abs().amax(1)
        if self.name == "msamp_power":
            scales = self.largest * torch.exp2(-torch.floor(torch.log2(self.largest / scales)))
        elif self.name == "mx_power":
            scales = self.largest * torch.exp2(torch.floor(torch.log2(scales)) - math.floor(math.log2(self.largest)))
        return scales.clamp(min=torch.finfo(rows.dtype).tiny)

    def of(self, w: Tensor, grouping: Grouping, rounding: Rounding) -> Tensor:
        """The initial scale of one tensor, as a tensor that broadcasts to the weights.

        Raises:
            ArgumentError: a group has zeros alone.
        """
        rows = grouping.rows(w.detach())
        _refuse_zeros(self.name, rows)
        return grouping.spread(self.now(rows))


def scale_of(scale: Any, largest: float = 1.0) -> float | InitialScale | MovingScale:
    """A number, or the scale with this name.

    Args:
        largest: the largest |level| of the grid in its own units, for powers of two.

    Raises:
        ArgumentError: there is no such scale.
    """
    if scale in FIXED:
        return float(scale)
    if scale in NAMES:
        return InitialScale(scale)
    if scale in MOVING:
        return MovingScale(scale, largest=largest)
    name, _, text = scale.rpartition("_") if isinstance(scale, str) else ("", "", "")
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if name == PERCENTILE and 0 < number <= 100:
        return InitialScale(PERCENTILE, number)
    if name == RMS and number > 0:
        return MovingScale(RMS, number)
    names = [*NAMES, f"{PERCENTILE}_<percent>", *MOVING]
    raise ArgumentError("scale", scale, f"{FIXED}, {', '.join(names)} or {RMS}_<factor>")

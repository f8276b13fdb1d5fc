"""Scales of grids: the factor on their levels, by tensor, by channel or by group of weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import FLAG, POSITIVE, ArgumentError, Number, OneOf
from qat_ste.base.parameters import Parameters, parameter
from qat_ste.quantizers.quantizer import Quantizer

NAMES, PERCENTILE = ("he", "initial_absmax", "initial_mse"), "initial_percentile"
MOVING, RMS, LEARNED = ("absmax", "absmax_gradient", "msamp_power", "mx_power", "nvfp4"), "rms", "learned"
FIXED = Number(1e-6, 1e6, real=True)
E8M0 = (-127, 127)  # smallest and largest exponent of the power of two
E4M3 = (2.0**-9, 448.0)  # smallest and largest positive value
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

    def of(self, w: Tensor, grouping: Grouping, rounding: Quantizer) -> float | Tensor:
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
        where = f"group {int(zero[0])}" if len(rows) > 1 else "the tensor"
        allowed = f"a scale that does not depend on the weights, as he: {where} has zeros alone"
        raise ArgumentError("scale", name, allowed)


def _least_squares(rows: Tensor, largest: Tensor, rounding: Quantizer) -> Tensor:
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for fraction in torch.linspace(1 / CANDIDATES, 1, CANDIDATES, dtype=torch.float64).tolist():
        scales = (largest * fraction)[:, None]
        error = (rounding(rows / scales) * scales - rows).square().sum(1)
        best = torch.where(error < least, scales[:, 0], best)
        least = torch.minimum(error, least)
    return best


@dataclass(frozen=True)
class MovingScale:
    """A scale that is computed anew from the weights after each step, by name.

    ``absmax``: the largest |w| of a group, detached. ``absmax_gradient``: not detached, so that the largest weight also
    gets the gradient of the scale (see ``LearnedScale``) times its sign. ``rms_<factor>``: factor·√mean(w²), detached.
    The others are detached and are multiplied by ``largest``, the largest |level| in the grid's own units:

    ``msamp_power``: 2^-floor(log2(largest/absmax)), as in MS-AMP; no weight saturates.
    ``mx_power``: 2^(floor(log2 absmax) - floor(log2 largest)), as in OCP's Microscaling Formats v1.0; weights can
    saturate. The exponent is clamped to that of E8M0, -127 to 127.
    ``nvfp4``: s_b·s_t, as in NVIDIA's NVFP4. s_t = max|w|/(448·largest) of the whole tensor, in float32; s_b is
    absmax/largest/s_t, rounded to the nearest FP8 E4M3 number (ties to even) and clamped to 2^-9 to 448.

    The scale of a group of zeros is the smallest of its format, but at least the smallest normal number of the dtype.
    Initially, only ``mx_power`` and ``nvfp4`` accept such groups.
    """

    name: str
    factor: float = 1.0
    largest: float = 1.0

    @property
    def kept(self) -> bool:
        """Whether the scale is that of M(w) too, where M keeps the outermost levels."""
        return self.name in ("absmax", "absmax_gradient")

    @property
    def has_gradient(self) -> bool:
        """Whether the scale passes a gradient on."""
        return self.name == "absmax_gradient"

    @property
    def learned(self) -> LearnedScale | None:
        """None: the scale is computed."""
        return None

    def now(self, rows: Tensor) -> Tensor:
        """The scale of each row of weights; the rows are all those of a tensor."""
        tiny = torch.finfo(rows.dtype).tiny
        if self.name == RMS:
            return (rows.square().mean(1).sqrt() * self.factor).clamp(min=tiny)
        absmax = rows.abs().amax(1).clamp(min=tiny)
        if self.name == "nvfp4":
            return (self.largest * self._nvfp4(absmax.double())).to(rows.dtype).clamp(min=tiny)
        if self.name in ("msamp_power", "mx_power"):
            return (self.largest * torch.exp2(self._exponent(absmax).double())).to(rows.dtype)
        return absmax

    def _exponent(self, absmax: Tensor) -> Tensor:
        """Exponents of powers of two, by ``frexp``: log2 rounds a number just below a power of two up to it."""
        mantissa, exponent = torch.frexp(absmax)
        largest_mantissa, largest_exponent = math.frexp(self.largest)
        exponent = exponent - largest_exponent
        if self.name == "mx_power":
            return exponent.clamp(*E8M0)
        return exponent + (mantissa.double() > largest_mantissa)

    def _nvfp4(self, absmax: Tensor) -> Tensor:
        """s_b·s_t of each block, exact in float64."""
        absmax = absmax.clamp(min=torch.finfo(torch.float32).tiny)
        # Divided in float64 and rounded: in float32 a GPU would multiply by the rounded reciprocal of a constant.
        of_tensor = (absmax.max() / (E4M3[1] * self.largest)).float()
        of_block = ((absmax / self.largest).float() / of_tensor).clamp(*E4M3).to(torch.float8_e4m3fn)
        return of_block.double() * of_tensor.double()

    def of(self, w: Tensor, grouping: Grouping, rounding: Quantizer) -> Tensor:
        """The initial scale of one tensor, as a tensor that broadcasts to the weights.

        Raises:
            ArgumentError: a group has zeros alone (not under ``mx_power``), under ``nvfp4`` the whole tensor.
        """
        rows = grouping.rows(w.detach())
        if self.name != "mx_power":
            _refuse_zeros(self.name, rows.reshape(1, -1) if self.name == "nvfp4" else rows)
        return grouping.spread(self.now(rows))


@dataclass(frozen=True)
class LearnedScale(Parameters):
    """A scale that the optimizer trains beside the weights, as LSQ does (arXiv 1902.08153).

    Its gradient is Σ G·(q(x) - x·g(x)) over a group, the derivative of s·q̂(w/s), with x = w/s and q the level in units
    of the scale. LSQ trains the step size Δ, with the factor 1/√(N·Q_P) on its gradient, N the weights of a group and
    Q_P = (levels - 1)/2. For s = Q_P·Δ that is the factor Q_P²/√(N·Q_P), which matters under SGD.

    Args:
        initial: ``lsq``, the published 2·mean|w|/√Q_P for Δ; or ``absmax``.
        lr: factor on the learning rate of the scales, which α does not change.
        lsq_factor: whether the gradient has LSQ's factor.
        with_g: whether the gradient contains g; LSQ as published has 1 in its place inside the range.
    """

    initial: str = parameter("lsq", OneOf(("lsq", "absmax")), "")
    lr: float = parameter(1.0, POSITIVE, "")
    lsq_factor: bool = parameter(True, FLAG, "")
    with_g: bool = parameter(True, FLAG, "")
    name = LEARNED
    kept = True
    has_gradient = True

    @property
    def learned(self) -> LearnedScale | None:
        """The scale itself."""
        return self

    def of(self, w: Tensor, grouping: Grouping, rounding: Quantizer) -> Tensor:
        """The initial scale of one tensor, as a tensor that broadcasts to the weights.

        Raises:
            ArgumentError: a group has zeros alone.
        """
        rows = grouping.rows(w.detach()).abs()
        _refuse_zeros(self.name, rows)
        return grouping.spread(2 * rows.mean(1) * _half(rounding) ** 0.5 if self.initial == "lsq" else rows.amax(1))

    def gradient_factor(self, quantizer: Quantizer, size: int) -> float:
        """The factor on the gradient of the scale of ``size`` weights."""
        return _half(quantizer) ** 1.5 / size**0.5 if self.lsq_factor else 1.0


def _half(quantizer: Quantizer) -> float:
    return (quantizer.num_levels - 1) / 2


def scale_of(scale: Any, largest: float = 1.0) -> float | InitialScale | MovingScale | LearnedScale:
    """A number, or the scale with this name.

    Args:
        scale: also a ``LearnedScale``, or a mapping of its arguments with ``name: learned``.
        largest: the largest |level| of the grid in its own units, for powers of two.

    Raises:
        ArgumentError: there is no such scale.
    """
    if isinstance(scale, LearnedScale):
        return scale
    if scale == LEARNED or (isinstance(scale, Mapping) and scale.get("name") == LEARNED):
        return _learned({} if scale == LEARNED else scale)
    if scale in FIXED:
        return float(scale)
    if isinstance(scale, str) and scale in NAMES:
        return InitialScale(scale)
    if isinstance(scale, str) and scale in MOVING:
        return MovingScale(scale, largest=largest)
    name, _, text = scale.rpartition("_") if isinstance(scale, str) else ("", "", "")
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if name == PERCENTILE and 0 < number <= 100:
        return InitialScale(PERCENTILE, number)
    if name == RMS and number > 0:
        return MovingScale(RMS, number)
    names = [*NAMES, f"{PERCENTILE}_<percent>", *MOVING, LEARNED]
    raise ArgumentError("scale", scale, f"{FIXED}, {', '.join(names)} or {RMS}_<factor>")


def _learned(arguments: Mapping[str, Any]) -> LearnedScale:
    given = {key: value for key, value in arguments.items() if key != "name"}
    known = [each.name for each in fields(LearnedScale)]
    if unknown := [str(key) for key in given if key not in known]:
        raise ArgumentError("scale", dict(arguments), f"without {', '.join(unknown)}: learned has {', '.join(known)}")
    try:
        return LearnedScale(**given)
    except ArgumentError as error:
        raise ArgumentError("scale", dict(arguments), f"learned with {error.name} {error.allowed}") from error

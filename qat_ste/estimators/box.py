"""The quantizer smoothed by uniform noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Box(Estimator):
    """g = n(u)/h, n the number of thresholds closer than h/2: the slope of the mean of Q(w + uniform noise).

    The noise is h steps wide. g = 1 where h is whole; else g jumps inside the interval, at d steps from the
    threshold, d the distance of h/2 from the nearest whole number: there M exists, but the error of a step
    shrinks with its size and not with its square. Its mean over an interval is 1. α = 1/(2h(d/n(0) +
    (1/2 - d)/n(1/2))). With h < 1 the theorem does not apply: g is zero near the levels.

    Args:
        h: width of the noise in steps, > 0.

    Raises:
        ValueError: h is not a positive finite number.
    """

    def __init__(self, h: float = 1.5) -> None:
        self.h: float = positive("h", h)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._pieces
        return torch.full_like(u, outer / self.h).masked_fill_(u.abs() < jump, inner / self.h)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._pieces
        return self.h * (u.clamp(-jump, jump) / inner + (u - u.clamp(-jump, jump)) / outer)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._pieces
        return (u.clamp(-jump, jump) * inner + (u - u.clamp(-jump, jump)) * outer) / self.h

    @property
    def _pieces(self) -> tuple[float, int, int]:
        """Distance of the jump from the threshold, and the number of thresholds in reach on either side of it."""
        half = self.h / 2
        outer = math.floor(half + 0.5) + math.ceil(half - 0.5)
        return abs(half - round(half)), math.floor(half) + math.ceil(half), outer

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

    The noise is h step sizes wide. If h is a whole number, g = 1. Otherwise g jumps at |u| = d, the distance of h/2
    from the nearest whole number: M exists, but the error of an update shrinks with the learning rate, not with its
    square. The mean of g over an interval is 1. α = 1/(2h(d/n(0) + (1/2 - d)/n(1/2))). With h < 1, the theorem
    does not apply, since g is zero near the levels.

    Args:
        h: width of the noise in step sizes, > 0.

    Raises:
        ArgumentError: h is not a positive finite number.
    """

    def __init__(self, h: float = 1.5) -> None:
        self.h: float = positive("h", h)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._jump_and_counts
        return torch.full_like(u, outer / self.h).masked_fill_(u.abs() < jump, inner / self.h)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._jump_and_counts
        return self.h * (u.clamp(-jump, jump) / inner + (u - u.clamp(-jump, jump)) / outer)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        jump, inner, outer = self._jump_and_counts
        return (u.clamp(-jump, jump) * inner + (u - u.clamp(-jump, jump)) * outer) / self.h

    @property
    def _jump_and_counts(self) -> tuple[float, int, int]:
        """|u| at the jump, and the number of thresholds within h/2 for smaller and for larger |u|."""
        half = self.h / 2
        outer = math.floor(half + 0.5) + math.ceil(half - 0.5)
        return abs(half - round(half)), math.floor(half) + math.ceil(half), outer

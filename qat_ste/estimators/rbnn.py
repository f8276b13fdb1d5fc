"""A triangle: the slope of the sign approximation in rotated binary networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.whole_line import SignOnly


class Rbnn(SignOnly):
    """g = k·(√2·t - t²·|x|) for |x| < √2/t, else 0, x = w/max (RBNN, Lin et al. 2020, arXiv 2009.13055).

    k = max(1/t, 1). For one bit. α = 1 and M(x) = -sgn(x)·ln(1 - t|x|/√2)/(k·t²). RBNN raises t during training,
    and rotates and standardizes the weights, so its x is in standard deviations; here t is constant.

    Args:
        t: sharpness, > 0; RBNN goes from 0.01 to 10, evenly in log t. From t = 1 on, k is 1.

    Raises:
        ArgumentError: t is not a positive finite number.
    """

    def __init__(self, t: float = 1.0) -> None:
        self.t: float = positive("t", t)

    @property
    def reach(self) -> float:
        return math.sqrt(2) / self.t

    def of(self, x: Tensor) -> Tensor:
        return (self.reach - x.abs()) * self._curvature

    def integral_of(self, x: Tensor) -> Tensor:
        return torch.log1p(-x / self.reach) / -self._curvature

    def primitive_of(self, x: Tensor) -> Tensor:
        return self._curvature * (self.reach * x - x * x.abs() / 2)

    @property
    def _curvature(self) -> float:
        """k·t²."""
        return max(self.t, self.t**2)

"""The slope of an arctangent."""

from __future__ import annotations

import math

from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Arctan(Estimator):
    """g = k/(2·atan(k/2))/(1 + k²u²): the slope of an arctangent from level to level.

    A surrogate gradient for spiking networks (Fang et al. 2020, arXiv 2007.05785, with k = π). The mean of g over
    an interval is 1. α = k/(2·atan(k/2)·(1 + k²/12)).

    Args:
        k: sharpness per step size, > 0.

    Raises:
        ArgumentError: k is not a positive finite number.
    """

    def __init__(self, k: float = math.pi) -> None:
        self.k: float = positive("k", k)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return (u * self.k).square_().add_(1).reciprocal_().mul_(self._height)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return (u + self.k**2 / 3 * u**3) / self._height

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return (u * self.k).atan() * (self._height / self.k)

    @property
    def _height(self) -> float:
        return self.k / (2 * math.atan(self.k / 2))

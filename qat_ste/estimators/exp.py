"""An exponential on either side of the threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Exp(Estimator):
    """g = c·exp(-k|u|), c = k/(2(1 - exp(-k/2))): an exponential on either side of the threshold.

    A surrogate gradient for spiking networks. The mean of g over an interval is 1. α = ck/(2(exp(k/2) - 1)).

    Args:
        k: sharpness per step size, > 0.

    Raises:
        ArgumentError: k is not a positive finite number.
    """

    def __init__(self, k: float = 5.0) -> None:
        self.k: float = positive("k", k)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.abs().mul_(-self.k).exp_().mul_(self._height)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.sign() * torch.expm1(self.k * u.abs()) / (self.k * self._height)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return -u.sign() * torch.expm1(-self.k * u.abs()) * (self._height / self.k)

    @property
    def _height(self) -> float:
        return -self.k / (2 * math.expm1(-self.k / 2))

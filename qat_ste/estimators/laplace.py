"""The quantizer smoothed by Laplace noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Laplace(Estimator):
    """g = cosh((1/2 - |u|)/b)/(2b·S), S = sinh(1/(2b)): the slope of the mean of Q(w + Laplace noise).

    The sum of the noise's density over all thresholds. The mean of g over an interval is 1. α = 1/(4b²·S·atan S).

    Args:
        b: scale of the noise in step sizes, > 0.

    Raises:
        ArgumentError: b is not a positive finite number.
    """

    def __init__(self, b: float = 0.3) -> None:
        self.b: float = positive("b", b)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        # With exponentials of at most 1, since cosh and S overflow for small b.
        near = u.abs().div_(-self.b).exp_()
        far = (1 - u.abs()).div_(-self.b).exp_()
        return near.add_(far).div_(-2 * self.b * math.expm1(-1 / self.b))

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        edge = torch.exp((u.abs() - 0.5) / self.b)
        scale = 4 * self.b**2 * math.sinh(0.5 / self.b)
        return scale * u.sign() * (edge.atan() - math.atan(math.exp(-0.5 / self.b)))

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        near, far = torch.exp(-u.abs() / self.b), torch.exp((u.abs() - 1) / self.b)
        return u.sign() * (0.5 + (near - far) / (2 * math.expm1(-1 / self.b)))

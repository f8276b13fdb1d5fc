"""A constant plus one cosine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Cosine(Estimator):
    """g = 1 + a·cos(2πu): the first two terms of the Fourier series of any smoothed quantizer's slope.

    The mean of g over an interval is 1. α = √(1 - a²). With |a| >= 1, the theorem does not apply, since g is zero
    or negative somewhere; a = 1 is "sine rounding", with g = 0 at the levels.

    Args:
        a: amplitude; 2·exp(-2π²σ²) approximates Gaussian noise of σ step sizes.

    Raises:
        ArgumentError: a is not a finite number.
    """

    def __init__(self, a: float = 0.5) -> None:
        self.a: float = number("a", a)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return (u * (2 * math.pi)).cos_().mul_(self.a).add_(1)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        x = math.pi * u
        return torch.atan2(math.sqrt(1 - self.a) * x.sin(), math.sqrt(1 + self.a) * x.cos()) / (
            math.pi * math.sqrt(1 - self.a**2)
        )

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u + self.a / (2 * math.pi) * torch.sin(2 * math.pi * u)

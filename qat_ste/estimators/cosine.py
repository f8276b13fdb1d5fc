"""A constant and one cosine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Cosine(Estimator):
    """g = 1 + a·cos(2πu): the first two terms of any smoothed quantizer's Fourier series.

    Its mean over an interval is 1. α = √(1 - a²). With |a| >= 1 the theorem does not apply: g is zero at the
    levels (a = 1, "sine rounding") or beyond.

    Args:
        a: height of the wave; 2·exp(-2π²σ²) stands for Gaussian noise of σ steps.

    Raises:
        ValueError: a is not a finite number.
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

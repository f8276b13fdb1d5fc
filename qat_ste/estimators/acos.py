"""A sine of the distance from the nearest level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Acos(Estimator):
    """g = 1 + (s/2)·sin πr, r the signed distance from the nearest level (Schaefer et al. 2022, arXiv 2206.07741).

    This is the slope in the paper's code. It jumps at the threshold, from 1 + s/2 below to 1 - s/2 above. It is not
    even in u, so M moves the levels, and the theorem does not apply with saturation "range". The mean of g over
    an interval is 1. α = √(1 - s²/4). With |s| >= 2, the theorem does not apply at all.

    Args:
        s: height of the jump; 0 to 1 in the paper's code.

    Raises:
        ArgumentError: s is not a finite number.
    """

    def __init__(self, s: float = 1.0) -> None:
        self.s: float = number("s", s)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        wave = (u * math.pi).cos_().mul_(self.s / 2)
        return torch.where(u < 0, wave, -wave).add_(1)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        a = self.s / 2
        x, ratio = torch.tan(math.pi / 2 * u), math.sqrt((1 + a) / (1 - a))
        return torch.atan(torch.where(u < 0, x / ratio, x * ratio)) * (2 / (math.pi * math.sqrt(1 - a * a)))

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u - self.s / (2 * math.pi) * torch.sin(math.pi * u.abs())

"""The slope of a tanh plus a floor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class TanhFloor(Estimator):
    """g = sech²(ku) + eps: a tanh's slope with a floor (OneBit, Xu et al. 2024, arXiv 2402.11295).

    OneBit uses it for the sign function, here it applies to each interval. With q = √(1 + eps),
    α = k·eps/(k - 2·artanh(tanh(k/2)/q)/q). The mean of g over an interval is 2·tanh(k/2)/k + eps, not 1.

    Args:
        k: sharpness per step size, > 0.
        eps: the floor, > 0.

    Raises:
        ArgumentError: k or eps is not a positive finite number.
    """

    def __init__(self, k: float = 1.0, eps: float = 0.001) -> None:
        self.k: float = positive("k", k)
        self.eps: float = positive("eps", eps)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        x = (u.abs() * (-2 * self.k)).exp_()
        return x.mul(4).div_(x.add(1).square_()).add_(self.eps)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        # [ku - artanh(tanh(ku)/q)/q]/(k·eps), rewritten as a sum, since the difference loses all digits as eps -> 0.
        q = math.sqrt(1 + self.eps)
        p = self.eps / (1 + q) / 2  # (q - 1)/2
        x = 2 * self.k * u
        artanh = (torch.log1p(p + p * x.exp()) - torch.log1p(p + p * (-x).exp())) / (4 * p)
        return (self.k * u + artanh) / (q * (1 + q) * self.k)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return torch.tanh(self.k * u) / self.k + self.eps * u

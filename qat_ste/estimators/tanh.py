"""Differentiable soft quantization: the slope of a tanh in each interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Tanh(Estimator):
    """g = e·coth(e)·sech²(2e·u), e = k/(2^bits - 1): the slope of a tanh from level to level.

    DSQ (Gong et al. 2019, arXiv 1908.05033) in the parameters of arXiv 2405.05171, section 2. The mean of g over
    an interval is 1. α = 2e²·coth(e)/(e + sinh e·cosh e).

    Args:
        k: sharpness in units of the range, > 0; the paper uses 2, 5.5 and 18 for 1, 2 and 4 bits.

    Raises:
        ArgumentError: k is not a positive finite number.
    """

    def __init__(self, k: float = 5.5) -> None:
        self.k: float = positive("k", k)

    def half_sharpness(self, quantizer: Quantizer) -> float:
        """e, where the soft quantizer is proportional to tanh(2e·u)."""
        return self.k / (quantizer.num_levels - 1)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        e = self.half_sharpness(quantizer)
        x = u.abs().mul_(-4 * e).exp_()  # sech² = 4x/(1 + x)²; 1 - tanh² would round to 0 in the tails
        return x.mul(4 * e / math.tanh(e)).div_(x.add(1).square_())

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        e = self.half_sharpness(quantizer)
        return (4 * e * u).sinh_().div_(8 * e).add_(u, alpha=0.5).mul_(math.tanh(e) / e)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        e = self.half_sharpness(quantizer)
        return torch.tanh(2 * e * u) / (2 * math.tanh(e))

"""A Gaussian around the threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Gauss(Estimator):
    """g = c·exp(-k²u²), c = k/(√π·erf(k/2)): a Gaussian around each threshold, truncated at the levels.

    A surrogate gradient for spiking networks. The mean of g over an interval is 1. α = ck/(√π·erfi(k/2)), but torch
    has no erfi, so α and M are integrated numerically.

    Args:
        k: sharpness per step size, > 0.

    Raises:
        ArgumentError: k is not a positive finite number.
    """

    def __init__(self, k: float = 3.0) -> None:
        self.k: float = positive("k", k)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        height = self.k / (math.sqrt(math.pi) * math.erf(self.k / 2))
        return (u * self.k).square_().neg_().exp_().mul_(height)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return torch.erf(self.k * u) / (2 * math.erf(self.k / 2))

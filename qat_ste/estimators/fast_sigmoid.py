"""The slope of a fast sigmoid."""

from __future__ import annotations

from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class FastSigmoid(Estimator):
    """g = c/(1 + k|u|)², c = 1 + k/2: the slope of x/(1 + |x|) from level to level.

    A surrogate gradient for spiking networks (SuperSpike, Zenke and Ganguli 2018, arXiv 1705.11146). The mean of g
    over an interval is 1. α = 3kc/(2(c³ - 1)).

    Args:
        k: sharpness per step size, > 0; 25 in snnTorch.

    Raises:
        ArgumentError: k is not a positive finite number.
    """

    def __init__(self, k: float = 25.0) -> None:
        self.k: float = positive("k", k)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.abs().mul_(self.k).add_(1).square_().reciprocal_().mul_(1 + self.k / 2)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        x = self.k * u.abs()
        return u * (1 + x + x**2 / 3) / (1 + self.k / 2)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u * (1 + self.k / 2) / (1 + self.k * u.abs())

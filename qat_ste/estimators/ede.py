"""Error decay estimator: the slope of a tanh of the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.whole_line import SignOnly


class Ede(SignOnly):
    """g = k·t·sech²(t·x), k = max(1/t, 1), x = w/max (IR-Net, Qin et al. 2020, arXiv 1909.10788).

    For one bit. α = 1 and M(x) = (x/2 + sinh(2tx)/(4t))/(k·t). IR-Net raises t during training and standardizes the
    weights, so its x is in standard deviations; here t is constant.

    Args:
        t: sharpness, > 0; IR-Net with binary weights goes from 0.1 to 10, evenly in log t. 1 is halfway.

    Raises:
        ArgumentError: t is not a positive finite number.
    """

    def __init__(self, t: float = 1.0) -> None:
        self.t: float = positive("t", t)

    def of(self, x: Tensor) -> Tensor:
        return max(1.0, self.t) / torch.cosh(x * self.t).square()

    def integral_of(self, x: Tensor) -> Tensor:
        return (x / 2 + torch.sinh(2 * self.t * x) / (4 * self.t)) / max(1.0, self.t)

    def primitive_of(self, x: Tensor) -> Tensor:
        return max(1 / self.t, 1.0) * torch.tanh(self.t * x)

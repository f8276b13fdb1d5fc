"""A parabola."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Parabola(Estimator):
    """g = a - b·u², highest at the threshold.

    The mean of g over an interval is a - b/12. α = √(ab)/(2·artanh(√(b/a)/2)). With b >= 4a, the theorem does not
    apply, since g is zero at the levels or negative near them.

    Args:
        a: height at the threshold, > 0.
        b: curvature, > 0.

    Raises:
        ArgumentError: a or b is not a positive finite number.
    """

    def __init__(self, a: float = 1.0, b: float = 3.0) -> None:
        self.a: float = positive("a", a)
        self.b: float = positive("b", b)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.square().mul_(-self.b).add_(self.a)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return torch.atanh(math.sqrt(self.b / self.a) * u) / math.sqrt(self.a * self.b)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return self.a * u - self.b / 3 * u**3

"""A slope that changes linearly with the distance from the level."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Tent(Estimator):
    """g = 1 + s|r|, |r| = 1/2 - |u| the distance from the level.

    Similar to position-based scaled gradients (PSG, Kim et al. 2020, arXiv 2005.11035). The mean of g over an
    interval is 1 + s/4, and α = s/(2·ln(1 + s/2)) can exceed 1. With s <= -2, the theorem does not apply.

    Args:
        s: slope; 0 to 1 in the code of Schaefer et al. 2022 (arXiv 2206.07741).

    Raises:
        ArgumentError: s is not a finite number.
    """

    def __init__(self, s: float = 1.0) -> None:
        self.s: float = number("s", s)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.abs().mul_(-self.s).add_(1 + self.s / 2)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        if self.s == 0:
            return u
        return -u.sign() * torch.log1p(u.abs() * (-self.s / (1 + self.s / 2))) / self.s

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return (1 + self.s / 2) * u - self.s / 2 * u * u.abs()

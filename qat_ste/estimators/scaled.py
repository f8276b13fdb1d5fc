"""The straight-through estimator times a constant."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Scaled(Estimator):
    """g = c: the STE at another learning rate.

    Alpha-blending scales the gradient like this (Liu and Mattina 2019, arXiv 1903.01061); c is 1 minus its
    coefficient. α = c, and M is the identity.

    Args:
        c: the constant, > 0.

    Raises:
        ArgumentError: c is not a positive finite number.
    """

    def __init__(self, c: float = 0.5) -> None:
        self.c: float = positive("c", c)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return torch.full_like(u, self.c)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u / self.c

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u * self.c

"""A triangle: the slope of two parabolas that approximate the sign function."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.estimators.whole_line import SignOnly


class ApproxSign(SignOnly):
    """g = 2 - 2|x| for |x| < 1, else 0, x = w/max (Bi-Real Net, Liu et al. 2018, arXiv 1808.00278).

    For one bit. α = 1 and M(x) = -sgn(x)·ln(1 - |x|)/2, which maps (-1, 1) to the whole line: a weight slows down
    as it approaches ±1, and freezes if a step takes it beyond. The paper uses this slope for activations.
    """

    @property
    def reach(self) -> float:
        return 1.0

    def of(self, x: Tensor) -> Tensor:
        return 2 - 2 * x.abs()

    def integral_of(self, x: Tensor) -> Tensor:
        return torch.log1p(-x) / -2

    def primitive_of(self, x: Tensor) -> Tensor:
        return 2 * x - x * x.abs()

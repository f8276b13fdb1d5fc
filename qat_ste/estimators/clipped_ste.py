"""The STE for counterparts whose gradient ends at another |w| than the end of the range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.estimators.ste import Ste
from qat_ste.quantizers.quantizer import Quantizer


class ClippedSte(Ste):
    """g = 1 for |w| < reach·max, else 0, under any ``saturation``; ``reach`` may be infinite."""

    def __init__(self, reach: float) -> None:
        self.reach = reach

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        if self.reach == math.inf:
            return torch.ones_like(w)
        return (w.abs() < self.reach * quantizer.max).to(w.dtype)

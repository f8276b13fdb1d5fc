"""The straight-through estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Ste(Estimator):
    """g = 1 (Bengio et al. 2013, arXiv 1308.3432)."""

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return torch.ones_like(u)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        return quantizer.gradient_mask(w)

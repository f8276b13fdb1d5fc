"""The quantizer smoothed by Gaussian noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class GaussSmooth(Estimator):
    """g = Σ_j φ((u - j)/sigma)/sigma, φ the normal density: the slope of the mean of Q(w + Gaussian noise).

    Randomized smoothing. The mean of g over an interval is 1. α has no closed form; for sigma >= 0.3 it is within
    2e-4 of √(1 - a²), the α of ``Cosine`` with a = 2·exp(-2π²·sigma²).

    Args:
        sigma: standard deviation of the noise in step sizes, between 0 and 2; well below 2, g is 1 to the last bit.

    Raises:
        ArgumentError: sigma is not a number between 0 and 2.
    """

    def __init__(self, sigma: float = 0.3) -> None:
        self.sigma: float = number("sigma", sigma, above=0, below=2)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        g, x = torch.zeros_like(u), torch.empty_like(u)  # on large buffers, allocating costs more than arithmetic
        for j in self._thresholds(u.dtype):
            g += torch.sub(u, j, out=x).square_().mul_(-0.5 / self.sigma**2).exp_()
        return g.div_(self.sigma * math.sqrt(2 * math.pi))

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        scaled = [torch.erf((u - j) / (self.sigma * math.sqrt(2))) for j in self._thresholds(u.dtype)]
        return 0.5 * torch.stack(scaled).sum(0)

    def _thresholds(self, dtype: torch.dtype) -> range:
        """Thresholds j whose density changes g, in this dtype, somewhere between two levels."""
        digits = math.log(100 / torch.finfo(dtype).eps)
        reach = math.ceil(0.5 + math.sqrt(0.25 + 2 * digits * self.sigma**2))
        return range(-reach, reach + 1)

"""The slope of a sum of sigmoids, one at each threshold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class SigmoidSum(Estimator):
    """g = Σ_j T·s(1 - s), s = 1/(1 + exp(-T(u - j))): the slope of a sum of sigmoids, one at each threshold.

    Quantization Networks (Yang et al. 2019, arXiv 1911.09464) sum over the thresholds of the quantizer; here the sum
    continues beyond the range, so all intervals have the same g. T grows with the epochs there, from 10; here it is
    constant. The mean of g over an interval is 1. α has no closed form.

    Args:
        temperature: T per step size, > 0.5; at 0.5, g is 1 to the last bit.

    Raises:
        ArgumentError: temperature is not a finite number above 0.5.
    """

    def __init__(self, temperature: float = 10.0) -> None:
        self.temperature: float = number("temperature", temperature, above=0.5)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        # On large buffers, allocating memory costs more than arithmetic.
        g, x, y = torch.zeros_like(u), torch.empty_like(u), torch.empty_like(u)
        for j in self._thresholds(u.dtype):
            torch.sub(u, j, out=x).abs_().mul_(-self.temperature).exp_()
            g.addcdiv_(x, torch.add(x, 1, out=y).square_())  # s(1 - s) = x/(1 + x)² is accurate in the tails
        return g.mul_(self.temperature)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return 0.5 * torch.stack([torch.tanh(self.temperature / 2 * (u - j)) for j in self._thresholds(u.dtype)]).sum(0)

    def _thresholds(self, dtype: torch.dtype) -> range:
        """Thresholds j whose sigmoid changes g, in this dtype, somewhere between two levels."""
        reach = math.ceil(1 + math.log(100 / torch.finfo(dtype).eps) / self.temperature)
        return range(-reach, reach + 1)

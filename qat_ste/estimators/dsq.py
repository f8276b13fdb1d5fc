"""Differentiable soft quantization in its own parameter."""

from __future__ import annotations

import math

from qat_ste.base.errors import number
from qat_ste.estimators.tanh import Tanh
from qat_ste.quantizers.quantizer import Quantizer


class Dsq(Tanh):
    """``Tanh`` in the parameter of DSQ (Gong et al. 2019, arXiv 1908.05033), the same for any number of bits.

    Half a step from a threshold the tanh has reached 1 - alpha: 2e = ln(2/alpha - 1).

    Args:
        alpha: between 0 (the hard quantizer) and 1 (the STE); 0.2 where it is learned from, 0.4 in MQBench.

    Raises:
        ValueError: alpha is not a number between 0 and 1.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha: float = number("alpha", alpha, above=0, below=1)

    def half_sharpness(self, quantizer: Quantizer) -> float:
        return math.log(2 / self.alpha - 1) / 2

"""Differentiable soft quantization in the parameter of its paper."""

from __future__ import annotations

import math

from qat_ste.base.errors import number
from qat_ste.estimators.tanh import Tanh
from qat_ste.quantizers.quantizer import Quantizer


class Dsq(Tanh):
    """``Tanh`` in the parameter of DSQ (Gong et al. 2019, arXiv 1908.05033), which holds for any number of bits.

    At a level, u = ±1/2, the tanh has the magnitude 1 - alpha: 2e = ln(2/alpha - 1).

    Args:
        alpha: between 0 (the hard quantizer) and 1 (the STE); DSQ starts to learn it from 0.2, MQBench uses 0.4.

    Raises:
        ArgumentError: alpha is not a number between 0 and 1.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        self.alpha: float = number("alpha", alpha, above=0, below=1)

    def half_sharpness(self, quantizer: Quantizer) -> float:
        return math.log(2 / self.alpha - 1) / 2

"""A sigmoid from each level to the next."""

from __future__ import annotations

from qat_ste.base.errors import positive
from qat_ste.estimators.tanh import Tanh
from qat_ste.quantizers.quantizer import Quantizer


class StackedSigmoid(Tanh):
    """``Tanh`` as a sigmoid of alpha·u (the code of Nagel et al. 2022, arXiv 2203.11086): 2e = alpha/2.

    Args:
        alpha: sharpness per step size, > 0.

    Raises:
        ArgumentError: alpha is not a positive finite number.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha: float = positive("alpha", alpha)

    def half_sharpness(self, quantizer: Quantizer) -> float:
        return self.alpha / 4

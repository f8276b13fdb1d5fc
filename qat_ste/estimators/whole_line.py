"""What estimators have in common whose g is no function of the offset between two levels."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from qat_ste.estimators.base import Estimator
from qat_ste.quantizer import Quantizer


class WholeLine(Estimator):
    """g as a function of x = w/max on the whole line, even, and 1 in every interval but beside the outermost threshold.

    Beyond the outermost thresholds the theorem asks of g only to be positive: with α = 1, M(w) = max·∫ ds/g from 0
    to x. The estimator says itself how far the gradient reaches, whatever the quantizer's ``saturation``; the STE
    counterpart's reaches as far as M takes that.
    """

    @property
    def reach(self) -> float:
        """|x| up to which g > 0."""
        return math.inf

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """g(x) for |x| < ``reach``; shape and dtype of ``x``."""

    @abstractmethod
    def integral_of(self, x: Tensor) -> Tensor:
        """∫ ds/g(s) from 0 to x >= 0 in closed form, float64; infinite at ``reach`` if need be."""

    def primitive_of(self, x: Tensor) -> Tensor | None:
        """The soft quantizer in units of max: ∫ g(s) ds from 0 to x; None where there is no closed form."""
        return None

    def check(self, quantizer: Quantizer) -> None:
        """Raises ValueError where the estimator is not made for this quantizer."""

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        self.check(quantizer)
        x = w / quantizer.max
        return self.of(x).masked_fill(x.abs() >= self.reach, 0)


class SignOnly(WholeLine):
    """A ``WholeLine`` for one bit, where there is no interval between two thresholds."""

    def check(self, quantizer: Quantizer) -> None:
        if quantizer.num_levels != 2:
            raise ValueError(
                f"{self} is made for the two levels of one bit, here are {quantizer.num_levels}: use quantizer.bits=1"
            )

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        self.check(quantizer)
        return self.of(2 * u)

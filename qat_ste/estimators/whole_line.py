"""What estimators have in common whose g is no function of the offset between two levels."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class WholeLine(Estimator):
    """g as an even function of x = w/max on the whole line.

    Beyond the outermost thresholds the theorem asks of g only to be positive; where it is 1 between them, or there
    is but one, α = 1 and M(w) = max·∫ ds/g from 0 to x. The estimator says itself how far the gradient reaches,
    whatever the quantizer's ``saturation``; the STE counterpart's reaches as far as M takes that.
    """

    @property
    def reach(self) -> float:
        """|x| up to which the gradient reaches."""
        return math.inf

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """g(x) for |x| < ``reach``; shape and dtype of ``x``."""

    def integral_of(self, x: Tensor) -> Tensor:
        """∫ ds/g(s) from 0 to x in closed form, 0 <= x < ``reach`` in float64.

        Asked for only where the theorem applies, so g > 0.
        """
        raise NotImplementedError

    def primitive_of(self, x: Tensor) -> Tensor | None:
        """The soft quantizer: ∫ g(s) ds from 0 to x, |x| < ``reach``; None where there is no closed form."""
        return None

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        """g over the interval around 0."""
        return self.of(u * (2 / (quantizer.num_levels - 1)))

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        x = quantizer.relative(w)
        return self.of(x).masked_fill(x.abs() >= self.reach, 0)


class SignOnly(WholeLine):
    """A ``WholeLine`` for one bit: its only threshold is 0, so no interval between two binds α."""

    def check(self, quantizer: Quantizer) -> None:
        if quantizer.num_levels != 2 or bool(quantizer.thresholds.any()):
            raise ValueError(f"{self} is made for the two levels -max and max of one bit")

"""Base classes of estimators whose g depends on the weight itself, not on its offset between two levels."""

from __future__ import annotations

import math
from abc import abstractmethod

from torch import Tensor

from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class WholeLine(Estimator):
    """g as an even function of x = w/max on the whole line.

    The theorem requires that g is positive and, between the outermost thresholds, 1; with a single threshold the
    second condition is void. Then α = 1 and M(w) = max·∫ ds/g from 0 to x. The gradient ends at ``reach``, under any
    ``saturation`` of the quantizer; that of the STE counterpart ends at M(reach).
    """

    @property
    def reach(self) -> float:
        """|x| from which the gradient is zero."""
        return math.inf

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """g(x) for |x| < ``reach``; shape and dtype of ``x``."""

    def integral_of(self, x: Tensor) -> Tensor:
        """∫ ds/g(s) from 0 to x in closed form, 0 <= x < ``reach``; x is in float64.

        Called only if the theorem applies, so g > 0.
        """
        raise NotImplementedError

    def primitive_of(self, x: Tensor) -> Tensor | None:
        """The soft quantizer, ∫ g(s) ds from 0 to x for |x| < ``reach``, or None without a closed form."""
        return None

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        """g in the interval around 0."""
        return self.of(u * (2 / (quantizer.num_levels - 1)))

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        x = quantizer.relative(w)
        return self.of(x).masked_fill(x.abs() >= self.reach, 0)


class SignOnly(WholeLine):
    """A ``WholeLine`` for one bit, with the only threshold at 0."""

    def check(self, quantizer: Quantizer) -> None:
        if quantizer.num_levels != 2 or bool(quantizer.thresholds.any()):
            raise ValueError(f"{self} is made for the two levels -max and max of one bit")

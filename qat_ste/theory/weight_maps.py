"""The weight map M and its inverse, for estimators with g(u) in each interval and with g(w/max) on the whole line."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from qat_ste.estimators import Estimator, Ste
from qat_ste.estimators.clipped_ste import ClippedSte
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.numerics import inverse_integral, inverse_of


class WeightMaps(Protocol):
    """Interface that ``SteEquivalent`` uses; returned weights are float64, frozen weights are unchanged."""

    lr_factor: float

    def forward(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """M(w)."""

    def inverse(self, z: Tensor, quantizer: Quantizer) -> Tensor:
        """M⁻¹(z)."""

    def counterpart(self, remapped: bool) -> Estimator:
        """See ``SteEquivalent.counterpart``."""


class IntervalMaps:
    """M for an estimator with the same g(u) in every interval: M moves the offset u to α·∫ ds/g from 0 to u."""

    def __init__(self, estimator: Estimator, quantizer: Quantizer) -> None:
        self._estimator, self._quantizer = estimator, quantizer
        lower, upper = self._integral(torch.tensor([-0.5, 0.5], dtype=torch.float64)).tolist()
        self.lr_factor = 1.0 / (upper - lower)
        self._start = self.lr_factor * lower

    def forward(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        return self._move(w, quantizer, self._moved_offset)

    def inverse(self, z: Tensor, quantizer: Quantizer) -> Tensor:
        return self._move(z, quantizer, self._original_offset)

    def counterpart(self, remapped: bool) -> Estimator:
        return Ste()

    def _move(self, w: Tensor, quantizer: Quantizer, move: Callable[[Tensor], Tensor]) -> Tensor:
        offset, threshold, width = quantizer.interval(w)
        return torch.where(quantizer.alive(w), move(offset).mul_(width).add_(threshold), w.double())

    def _moved_offset(self, u: Tensor) -> Tensor:
        return self._integral(u) * self.lr_factor

    def _original_offset(self, target: Tensor) -> Tensor:
        # M maps an interval to one of the same length, which is shifted if g is not even.
        intervals = (target - self._start).floor()
        return self._inverse(target - intervals) + intervals

    def _integral(self, u: Tensor) -> Tensor:
        """∫ ds/g(s) from 0 to u."""
        closed_form = self._estimator.integral(u, self._quantizer)
        return self._numeric_integral(u) if closed_form is None else closed_form

    @cached_property
    def _numeric_integral(self) -> Callable[[Tensor], Tensor]:
        return inverse_integral(lambda u: self._estimator.shape(u, self._quantizer))

    @cached_property
    def _inverse(self) -> Callable[[Tensor], Tensor]:
        slope = lambda u: self.lr_factor / self._estimator.shape(u, self._quantizer)  # noqa: E731
        return inverse_of(self._moved_offset, slope, -0.5, 0.5)


class WholeLineMaps:
    """M for an estimator with g(x), x = w/max: M changes only weights on the outermost levels, and α = 1.

    Weights without a gradient are frozen in the reference and in the counterpart: M moves them beyond the reach of
    ``counterpart``. Since M can be infinite at the estimator's reach, it is cut off one float32 below.
    """

    lr_factor = 1.0

    def __init__(self, estimator: WholeLine) -> None:
        self._estimator = estimator
        self._cutoff = estimator.reach * (1 - 2**-24)

    def forward(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        x = w.double() / quantizer.max
        distance = x.abs()
        moved = self._estimator.integral_of(distance.clamp(max=self._cutoff)) + (distance - self._cutoff).clamp(min=0)
        return moved * x.sign() * quantizer.max

    def inverse(self, z: Tensor, quantizer: Quantizer) -> Tensor:
        y = z.double() / quantizer.max
        distance = y.abs()
        farthest = float(distance.max()) if y.numel() else 0.0
        high = 1.0
        while high < self._cutoff and self._estimator.integral_of(y.new_tensor([high])).item() < farthest:
            high *= 2
        high = min(high, self._cutoff)
        end = self._estimator.integral_of(y.new_tensor([high]))
        invert = inverse_of(self._estimator.integral_of, lambda x: 1 / self._estimator.of(x), 0.0, high)
        x = invert(distance.clamp(max=end)) + (distance - end).clamp(min=0)
        return x * y.sign() * quantizer.max

    def counterpart(self, remapped: bool) -> Estimator:
        if not remapped:
            return ClippedSte(self._estimator.reach)
        return ClippedSte(self._estimator.integral_of(torch.tensor(self._cutoff, dtype=torch.float64)).item())

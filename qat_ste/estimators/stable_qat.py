"""The slope of a rotated, damped Fourier series of the staircase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class StableQat(Estimator):
    """g = (1 - c·sin π|u|)/(1 + c·sin π|u|), c = √2·π·amplitude (StableQAT 2026, arXiv 2601.19320, one term).

    g is 1 at the threshold and smallest at the levels; its mean over an interval is below 1 (0.302 for amplitude
    0.21). With c = sin φ, α = 1/((2 + 4φ/π)/cos φ - 1). From amplitude 1/(√2·π) = 0.2251, the theorem does not
    apply, since g is not positive near the levels.

    Args:
        amplitude: amplitude of the series, A in the paper, > 0.

    Raises:
        ArgumentError: amplitude is not a positive finite number.
    """

    def __init__(self, amplitude: float = 0.21) -> None:
        self.amplitude: float = positive("amplitude", amplitude)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        s = u.abs().mul_(math.pi).sin_().mul_(self._c)
        return (1 - s).div_(s.add_(1))

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return self._closed_form(u, -self._c)

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor | None:
        return self._closed_form(u, self._c) if self._c < 1 else None

    def _closed_form(self, u: Tensor, c: float) -> Tensor:
        """∫ (1 - c·sin π|s|)/(1 + c·sin π|s|) ds from 0 to u, |c| < 1."""
        cosine = math.sqrt(1 - c**2)
        angle = torch.atan((torch.tan(math.pi / 2 * u.abs()) + c) / cosine) - math.asin(c)
        return u.sign() * angle * (4 / (math.pi * cosine)) - u

    @property
    def _c(self) -> float:
        return math.sqrt(2) * math.pi * self.amplitude

"""The clipped straight-through estimator."""

from __future__ import annotations

from torch import Tensor

from qat_ste.estimators.ste import Ste
from qat_ste.quantizers.quantizer import Quantizer


class Pwl(Ste):
    """g = 1 inside the range and 0 outside it (piecewise linear; Hubara et al. 2016, arXiv 1602.02830).

    The estimator clips under any ``saturation`` of the quantizer; with ``saturation="range"`` it equals the STE.
    """

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        return (~quantizer.saturated(w)).to(w.dtype)

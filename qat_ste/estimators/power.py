"""The capped slope of a root."""

from __future__ import annotations

from torch import Tensor

from qat_ste.base.errors import number, positive
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Power(Estimator):
    """g = min(|2u|^(1/k - 1)/k, cap): the slope of a k-th root from level to level, capped at the threshold.

    The differentiable gradient estimator for FP4 training (DGE, Wang et al. 2025, arXiv 2501.17116). The mean of g
    over an interval is 1 without the cap and smaller with it (0.593 for k = 5, cap = 3). α = 1/(2P),
    P = c/cap + k²/(2(2k - 1))·(1 - (2c)^(2 - 1/k)), if the cap holds up to |u| = c = (k·cap)^(-k/(k - 1))/2 <= 1/2;
    without the cap, α = (2k - 1)/k².

    Args:
        k: degree of the root, > 1.
        cap: the largest g, > 0.

    Raises:
        ArgumentError: k is not a finite number above 1, or cap is not a positive finite number.
    """

    def __init__(self, k: float = 5.0, cap: float = 3.0) -> None:
        self.k: float = number("k", k, above=1)
        self.cap: float = positive("cap", cap)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u.abs().mul_(2).pow_(1 / self.k - 1).div_(self.k).clamp_(max=self.cap)

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        end, power = self._cap_end, 2 - 1 / self.k
        beyond = (2 * u.abs().clamp(min=end)) ** power - (2 * end) ** power
        return u.clamp(-end, end) / self.cap + u.sign() * beyond * (self.k / (2 * power))

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        end, power = self._cap_end, 1 / self.k
        beyond = (2 * u.abs().clamp(min=end)) ** power - (2 * end) ** power
        return u.clamp(-end, end) * self.cap + u.sign() * beyond / 2

    @property
    def _cap_end(self) -> float:
        """|u| up to which the cap holds."""
        return (self.k * self.cap) ** (-self.k / (self.k - 1)) / 2

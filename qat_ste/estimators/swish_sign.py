"""The slope of a soft sign made of swishes, which overshoots."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.whole_line import SignOnly


class SwishSign(SignOnly):
    """g = β·(2 - βx·tanh(βx/2))/(1 + cosh βx), x = w/max (BNN+, Darabi et al. 2018, arXiv 1812.11800).

    For one bit. A counterexample to which the theorem does not apply: for |βx| > 2.3994 the soft sign falls back
    towards 1, so g < 0, and SGD moves these weights in the direction that raises the loss.

    Args:
        beta: sharpness β, > 0; 5 in the paper's code.

    Raises:
        ArgumentError: beta is not a positive finite number.
    """

    def __init__(self, beta: float = 5.0) -> None:
        self.beta: float = positive("beta", beta)

    def of(self, x: Tensor) -> Tensor:
        y = x * (self.beta / 2)
        return self.beta * (1 - y * torch.tanh(y)) / torch.cosh(y).square()

    def primitive_of(self, x: Tensor) -> Tensor:
        y = x * self.beta
        return 2 * torch.sigmoid(y) * (1 + y * torch.sigmoid(-y)) - 1

"""Element-wise gradient scaling: weights move faster towards a level than away from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer


class Ewgs(Estimator):
    """The gradient G becomes G·(1 + δ·sgn(G)·r) = G + δ·|G|·r, r the distance from the level (EWGS, Lee et al. 2021).

    arXiv 2104.00903; r = w - Q(w) in step sizes, from -1/2 to 1/2. This is the STE plus a pull towards the levels.
    The factor on the gradient is 1 + δr if the weight decreases and 1 - δr if it increases; ``shape`` is their
    harmonic mean 1 - δ²r². Both directions have α = δ/ln((1 + δ/2)/(1 - δ/2)). Their weight maps differ by δ/4 of a
    step size at a level; M is their mean. A smaller learning rate does not reduce the effect of the pull.

    Args:
        delta: δ, between 0 and 2; 0.2 per step size in the code of Nagel et al. 2022 (arXiv 2203.11086). The code
            of EWGS has r in units of the whole range: its 1e-3 is 1e-3/(2^bits - 1) here.

    Raises:
        ArgumentError: delta is out of its bounds.
    """

    not_covered = (
        "its g depends on the sign of the gradient, which adds a pull towards the levels that a smaller learning rate "
        "does not remove"
    )

    def __init__(self, delta: float = 0.2) -> None:
        self.delta: float = number("delta", delta, above=0, below=2)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return 1 - (self.delta * (0.5 - u.abs())) ** 2

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        at_threshold = math.atanh(self.delta / 2)
        return u.sign() * (at_threshold - torch.atanh(self.delta * (0.5 - u.abs()))) / self.delta

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return u - u.sign() * (0.125 - (0.5 - u.abs()) ** 3) * (self.delta**2 / 3)

    def backward(self, gradient: Tensor, w: Tensor, quantizer: Quantizer) -> Tensor:
        u = quantizer.offset(w)
        r = torch.where(u < 0, u + 0.5, u - 0.5)  # a threshold belongs to the level above
        return (gradient + gradient.abs() * r * self.delta) * quantizer.gradient_mask(w)

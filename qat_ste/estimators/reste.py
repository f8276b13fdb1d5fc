"""Rectified STE: the slope of a root, replaced by that of a chord near 0."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import number, positive
from qat_ste.estimators.whole_line import SignOnly


class Reste(SignOnly):
    """g = |x|^(1/o - 1)/o for m < |x| < t, m^(1/o - 1) nearer to 0, x = w/max (ReSTE, Wu et al. 2023).

    arXiv 2308.06689. The slope of sgn(x)·|x|^(1/o), and for |x| < m that of its chord, as in the paper's code; g jumps
    at m, and is 0 beyond t. For one bit. α = 1. M is odd: M(x) = m^(1 - 1/o)·x for 0 <= x <= m, and
    m^p + (o/p)·(x^p - m^p), p = 2 - 1/o, for m < x < t. The paper raises o during training; here it is constant.

    Args:
        o: degree of the root, > 1/2; the paper goes from 1 (the STE) to 3.
        m: |x| at which the chord ends, > 0; 0.1 in the paper's code.
        t: |x| at which the gradient ends, > m; 1.5 in the paper's code.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """

    def __init__(self, o: float = 3.0, m: float = 0.1, t: float = 1.5) -> None:
        self.o: float = number("o", o, above=0.5)
        self.m: float = positive("m", m)
        self.t: float = number("t", t, above=self.m)

    @property
    def reach(self) -> float:
        return self.t

    def of(self, x: Tensor) -> Tensor:
        distance = x.abs()
        slope = distance.clamp(min=self.m) ** (1 / self.o - 1)
        return torch.where(distance > self.m, slope / self.o, slope)

    def integral_of(self, x: Tensor) -> Tensor:
        p = 2 - 1 / self.o
        chord = x.clamp(max=self.m) * self.m ** (1 - 1 / self.o)
        return chord + (x.clamp(min=self.m) ** p - self.m**p) * (self.o / p)

    def primitive_of(self, x: Tensor) -> Tensor:
        distance = x.abs()
        chord = distance * self.m ** (1 / self.o - 1)
        return x.sign() * torch.where(distance > self.m, distance.clamp(min=self.m) ** (1 / self.o), chord)

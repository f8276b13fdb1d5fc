"""Magnitude-aware differentiation: outliers get a smaller gradient instead of none."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.whole_line import WholeLine


class Mad(WholeLine):
    """g = 1 for |x| <= s, s/|x| beyond, x = w/max (MAD, Sakr et al. 2022, arXiv 2206.06501).

    For any number of levels. α = 1 and M(x) = sgn(x)·(x² + s²)/(2s) for |x| > s: the STE at the same learning rate,
    with the outliers further out. With s below the outermost threshold, the theorem does not apply. The paper
    recomputes s in each training step (OCTAV), which also moves the levels; here both are constant.

    Args:
        s: |x| above which a weight is an outlier, > 0; 1 in the paper, which clips there.

    Raises:
        ArgumentError: s is not a positive finite number.
    """

    def __init__(self, s: float = 1.0) -> None:
        self.s: float = positive("s", s)

    def of(self, x: Tensor) -> Tensor:
        return (x.abs() / self.s).clamp_(min=1).reciprocal_()  # exactly 1 inside

    def integral_of(self, x: Tensor) -> Tensor:
        beyond = (x - self.s).clamp_(min=0)
        return x + beyond.square_().div_(2 * self.s)

    def primitive_of(self, x: Tensor) -> Tensor:
        return x.clamp(-self.s, self.s) + x.sign() * torch.log(x.abs().clamp(min=self.s) / self.s) * self.s

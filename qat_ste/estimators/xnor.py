"""The slope of the sign function times the mean magnitude of the filter."""

from __future__ import annotations

from torch import Tensor

from qat_ste.base.errors import positive
from qat_ste.estimators.whole_line import SignOnly


class Xnor(SignOnly):
    """g = 1/n + c for |x| <= 1, 1/n beyond, x = w/max (XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279).

    The slope of mean|w|·sgn(w); the term 1/n is the derivative of the mean. For one bit. α = 1 and M(x) = x/(1/n + c)
    for |x| <= 1; beyond, |M(x)| grows by n·(|x| - 1). The paper's levels are ±mean|w|; here they are ±max.

    Args:
        n: number of weights per scale, > 0; in the paper the size of a filter, by default 3 x 3 over 64 channels.
        c: mean|w|/max, > 0; 0.5 for uniformly drawn weights.

    Raises:
        ArgumentError: an argument is not a positive finite number.
    """

    def __init__(self, n: float = 576.0, c: float = 0.5) -> None:
        self.n: float = positive("n", n)
        self.c: float = positive("c", c)

    def of(self, x: Tensor) -> Tensor:
        return (x.abs() <= 1).to(x.dtype) * self.c + 1 / self.n

    def integral_of(self, x: Tensor) -> Tensor:
        return x.clamp(max=1) / (1 / self.n + self.c) + (x - 1).clamp(min=0) * self.n

    def primitive_of(self, x: Tensor) -> Tensor:
        return x / self.n + x.clamp(-1, 1) * self.c

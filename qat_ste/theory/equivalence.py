"""The theorem: training with an estimator is training with the STE at another learning rate, from other weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from qat_ste.estimators import Estimator
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.assumptions import check_assumptions
from qat_ste.theory.weight_maps import IntervalMaps, WeightMaps, WholeLineMaps


class SteEquivalent:
    """The STE counterpart of an estimator: learning-rate factor α, weight map M, and how far a step can part them.

    M(w) = t + α·∫ ds/g(s) from t to w with t the threshold of the interval, and α the harmonic mean of g over one
    interval (arXiv 2405.05171, theorem 1). M is the identity where g is zero. Uses the estimator's closed form
    where it has one, else integrates numerically. α knows no width: it serves intervals of any (``GridQuantizer``).
    Of an estimator that changes while it trains, all this is of its first stage; ``at`` has the others.

    Raises:
        ValueError: the theorem cannot apply; the message says which assumption fails and where.
    """

    def __init__(self, estimator: Estimator, quantizer: Quantizer) -> None:
        self._later = [SteEquivalent(stage, quantizer) for stage in estimator.stages[1:]]
        self.estimator = estimator = estimator.stages[0]
        self.quantizer = quantizer
        self.assumptions = check_assumptions(estimator, quantizer)
        self._maps: WeightMaps
        if isinstance(estimator, WholeLine):
            self._maps = WholeLineMaps(estimator)
        else:
            self._maps = IntervalMaps(estimator, quantizer)

    @property
    def lr_factor(self) -> float:
        """α: the counterpart's learning rate on quantized tensors over the reference's."""
        return self._maps.lr_factor

    def counterpart(self, remapped: bool) -> Estimator:
        """The STE whose gradient ends where the estimator's does, seen through M if its weights are."""
        return self._maps.counterpart(remapped)

    def at(self, stage: int) -> SteEquivalent:
        """That of another stage of the estimator: 0, 1, …"""
        return self._later[stage - 1] if stage else self

    def on(self, quantizer: Quantizer) -> SteEquivalent:
        """The same equivalence on the same grid with another range: M scales with it."""
        other = copy.copy(self)
        other.quantizer = quantizer
        return other

    def weight_map(self, w: Tensor) -> Tensor:
        """M(w), computed in float64; shape and dtype of ``w``. No weight leaves the cell of its level."""
        return self._within_cells(w, self._maps.forward(w, self.quantizer))

    def inverse(self, z: Tensor) -> Tensor:
        """M⁻¹(z), in float64 to 1e-10; shape and dtype of ``z``. No weight leaves the cell of its level."""
        return self._within_cells(z, self._maps.inverse(z, self.quantizer))

    def slope(self, w: Tensor) -> Tensor:
        """M'(w): α/g(w), and 1 where g is zero; shape and dtype of ``w``."""
        g = self.estimator.derivative(w, self.quantizer)
        return torch.where(g > 0, self.lr_factor / g, 1.0)

    def step_error_bound(self, lr: float, gradient: Tensor, gradient_ste: Tensor, width: float | Tensor) -> Tensor:
        """Largest growth of |M(w) - w_ste| in one SGD step of the pair, elementwise.

        α·η·|G - G_ste| + ½·α·(L'·L₊²/L₋²)·η²·G², with η the reference's learning rate, G and G_ste the gradients at
        the quantized weights of either model, ``width`` that of the interval, Δ (arXiv 2405.05171, proof of
        theorem 1). Holds for steps that stay where the backward pass is alive.
        """
        known = self.assumptions
        curvature = known.lipschitz / width * known.upper**2 / known.lower**2
        apart = (gradient - gradient_ste).abs()
        return self.lr_factor * (lr * apart + 0.5 * curvature * lr**2 * gradient**2)

    def _within_cells(self, w: Tensor, moved: Tensor) -> Tensor:
        """In the dtype of ``w``; rounding to it may, once in millions, land on the threshold from below."""
        moved = moved.to(w.dtype)
        if (self.quantizer.index(moved) != self.quantizer.index(w)).any():
            lowest, highest = self.quantizer.cell(w)
            torch.minimum(torch.maximum(moved, lowest, out=moved), highest, out=moved)
        return moved

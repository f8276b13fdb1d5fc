"""The equivalence theorem: the STE at learning rate α·η, from the weights M(w₀), trains like another estimator."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor

from qat_ste.estimators import Estimator
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.assumptions import check_assumptions
from qat_ste.theory.weight_maps import IntervalMaps, WeightMaps, WholeLineMaps


class SteEquivalent:
    """Computes the STE counterpart of an estimator: learning-rate factor α, weight map M, error bound of a step.

    M(w) = t + α·∫ ds/g(s) from t to w, with t the threshold of the interval and α the harmonic mean of g over an
    interval (arXiv 2405.05171, theorem 1). M is the identity where g is zero. The integral is the estimator's closed
    form, or numerical without one. α holds for intervals of any width (see ``GridQuantizer``). For an estimator that
    changes during training, all this applies to its first stage; ``at`` returns the others.

    Raises:
        ValueError: the theorem does not apply; the message says which assumption fails and where.
    """

    def __init__(self, estimator: Estimator, quantizer: Quantizer) -> None:
        self._later_stages = [SteEquivalent(stage, quantizer) for stage in estimator.stages[1:]]
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
        """α, the ratio of the counterpart's learning rate on quantized tensors to the reference's."""
        return self._maps.lr_factor

    @cached_property
    def keeps_ends(self) -> bool:
        """Whether M leaves the outermost levels in place, as it does where g is even in u."""
        levels = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return bool((self._maps.forward(levels, self.quantizer.with_max(1.0)) - levels).abs().max() < 1e-9)

    def counterpart(self, remapped: bool) -> Estimator:
        """The STE whose gradient ends where the estimator's does; if ``remapped``, at the image of that end under M."""
        return self._maps.counterpart(remapped)

    def at(self, stage: int) -> SteEquivalent:
        """The equivalence of stage 0, 1, … of the estimator."""
        return self._later_stages[stage - 1] if stage else self

    def on(self, quantizer: Quantizer) -> SteEquivalent:
        """The same equivalence on the same grid with another ``max``, with which M scales."""
        other = copy.copy(self)
        other.quantizer = quantizer
        return other

    def weight_map(self, w: Tensor) -> Tensor:
        """M(w), computed in float64; shape and dtype of ``w``. Each weight keeps its level."""
        moved = self._keep_levels(w, self._maps.forward(w, self.quantizer))
        if not self.keeps_ends or self.quantizer.saturation == "none":
            return moved
        # A weight on the end of the range must not be rounded to beyond it, where it would get no gradient.
        inside = moved.clamp(*self.quantizer.reach(self.quantizer.saturation, moved))
        return torch.where(self.quantizer.alive(w), inside, moved)

    def inverse(self, z: Tensor) -> Tensor:
        """M⁻¹(z), computed in float64 to 1e-10; shape and dtype of ``z``. Each weight keeps its level."""
        return self._keep_levels(z, self._maps.inverse(z, self.quantizer))

    def slope(self, w: Tensor) -> Tensor:
        """M'(w) = α/g(w), or 1 where g is zero; shape and dtype of ``w``."""
        g = self.estimator.derivative(w, self.quantizer)
        return torch.where(g > 0, self.lr_factor / g, 1.0)

    def step_error_bound(self, lr: float, gradient: Tensor, gradient_ste: Tensor, width: float | Tensor) -> Tensor:
        """Bound on the growth of |M(w) - w_ste| in one SGD step of both models, elementwise.

        α·η·|G - G_ste| + ½·α·(L'·L₊²/L₋²)·η²·G², with η the reference's learning rate, G and G_ste the gradients at
        the quantized weights of reference and counterpart, and ``width`` = Δ that of the interval (arXiv 2405.05171,
        proof of theorem 1). Holds for weights that get a gradient before and after the step.
        """
        constants = self.assumptions
        curvature = constants.lipschitz / width * constants.upper**2 / constants.lower**2
        difference = (gradient - gradient_ste).abs()
        return self.lr_factor * (lr * difference + 0.5 * curvature * lr**2 * gradient**2)

    def _keep_levels(self, w: Tensor, moved: Tensor) -> Tensor:
        """``moved`` in the dtype of ``w``; rounding to it can, about once in a million, reach the threshold above."""
        moved = moved.to(w.dtype)
        if (self.quantizer.index(moved) != self.quantizer.index(w)).any():
            lowest, highest = self.quantizer.cell(w)
            torch.minimum(torch.maximum(moved, lowest, out=moved), highest, out=moved)
        return moved

"""The theorem: training with an estimator is training with the STE at another learning rate, from other weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qat_ste.estimators import Estimator
from qat_ste.quantizer import UniformQuantizer


@dataclass(frozen=True)
class Assumptions:
    """What arXiv 2405.05171 asks of g where the backward pass is alive, as found on a dense sweep.

    ``lower`` and ``upper`` are L₋ <= g <= L₊; ``lipschitz`` is L' for u in steps (divide by Δ for weights), or
    infinity where g jumps: M then still exists, but the error of a step no longer shrinks with its square.
    """

    lower: float
    upper: float
    lipschitz: float
    even: bool


class SteEquivalent:
    """The STE counterpart of an estimator: learning-rate factor α, weight map M, and how far a step can part them.

    M(w) = t + α·∫ ds/g(s) from t to w with t the nearest threshold, and α the harmonic mean of g over one
    interval (arXiv 2405.05171, theorem 1). M is the identity where g is zero. Uses the estimator's closed form
    where it has one, else integrates numerically.

    Raises:
        ValueError: the theorem cannot apply; the message says which assumption fails and where.
    """

    def __init__(self, estimator: Estimator, quantizer: UniformQuantizer) -> None:
        self.estimator = estimator
        self.quantizer = quantizer
        self.assumptions = _check_assumptions(estimator, quantizer)

    @cached_property
    def lr_factor(self) -> float:
        """α: the counterpart's learning rate on quantized tensors over the reference's."""
        lower, upper = self._integral(torch.tensor([-0.5, 0.5], dtype=torch.float64)).tolist()
        return 1.0 / (upper - lower)

    def on(self, quantizer: UniformQuantizer) -> SteEquivalent:
        """The same equivalence on a grid of as many levels with another range: M scales with the step."""
        _ = self.lr_factor  # and its tables: computed once for all
        other = copy.copy(self)
        other.quantizer = quantizer
        return other

    def weight_map(self, w: Tensor) -> Tensor:
        """M(w), computed in float64; shape and dtype of ``w``. No weight leaves the cell of its level."""
        return self._move(w, lambda u: self._integral(u) * self.lr_factor)

    def inverse(self, z: Tensor) -> Tensor:
        """M⁻¹(z), by bisection in float64; shape and dtype of ``z``. No weight leaves the cell of its level."""
        return self._move(z, self._inverse_offset)

    def step_error_bound(self, lr: float, gradient: Tensor, gradient_ste: Tensor, step: float | Tensor) -> Tensor:
        """Largest growth of |M(w) - w_ste| in one SGD step of the pair, elementwise.

        α·η·|G - G_ste| + ½·α·(L'·L₊²/L₋²)·η²·G², with η the reference's learning rate, G and G_ste the
        gradients at the quantized weights of either model, ``step`` = Δ (arXiv 2405.05171, proof of theorem 1).
        Holds for steps that stay where the backward pass is alive.
        """
        known = self.assumptions
        curvature = known.lipschitz / step * known.upper**2 / known.lower**2
        apart = (gradient - gradient_ste).abs()
        return self.lr_factor * (lr * apart + 0.5 * curvature * lr**2 * gradient**2)

    def _move(self, w: Tensor, move_offset: Callable[[Tensor], Tensor]) -> Tensor:
        """Replaces the offset u of every alive weight within its interval."""
        step = self.quantizer.step_in(w.dtype, w.device)
        step64 = step.double() if isinstance(step, Tensor) else step
        # In place where it can be: on large buffers fresh memory costs more than arithmetic.
        offset = w.double() / step64
        threshold = offset.round()
        moved = move_offset(offset.sub_(threshold)).add_(threshold).mul_(step64).to(w.dtype)
        # Rounding to w's dtype may, once in millions, land on the threshold from below, and so on the other level.
        if (self.quantizer.integer_index(moved) != self.quantizer.integer_index(w)).any():
            lowest, highest = self.quantizer.cell(w)
            torch.minimum(torch.maximum(moved, lowest, out=moved), highest, out=moved)
        return torch.where(self.quantizer.alive(w), moved, w, out=moved)

    def _integral(self, u: Tensor) -> Tensor:
        """∫ ds/g(s) from 0 to u, float64."""
        closed_form = self.estimator.integral(u, self.quantizer)
        return self._numeric_integral(u) if closed_form is None else closed_form

    @cached_property
    def _numeric_integral(self) -> Callable[[Tensor], Tensor]:
        return inverse_integral(lambda u: self.estimator.shape(u, self.quantizer))

    def _inverse_offset(self, target: Tensor) -> Tensor:
        # M takes an interval to one as long, but where g is not even to one that lies elsewhere.
        intervals = (target - self.lr_factor * self._integral(target.new_tensor(-0.5))).floor()
        target = target - intervals
        low, high = torch.full_like(target, -0.5), torch.full_like(target, 0.5)
        for _ in range(54):  # halves [-1/2, 1/2] down to the last bit of float64
            middle = (low + high) / 2
            above = self.lr_factor * self._integral(middle) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2 + intervals


def inverse_integral(g: Callable[[Tensor], Tensor], panels: int = 1024, order: int = 8) -> Callable[[Tensor], Tensor]:
    """u -> ∫ ds/g(s) from 0 to u, for u in [-1/2, 1/2], by Gauss-Legendre quadrature in float64.

    Whole panels are tabulated once; the rest of the panel that u lies in is integrated anew, so that the
    result is as smooth as g. Better than 1e-10 relative for g smooth but for kinks or jumps at the threshold.
    """
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(order))
    edges = torch.linspace(-0.5, 0.5, panels + 1, dtype=torch.float64)

    def integrate(low: Tensor, high: Tensor) -> Tensor:
        middle, half = (high + low) / 2, (high - low) / 2
        return half * sum(weight / g(middle + node * half) for node, weight in zip(nodes, weights, strict=True))

    table = torch.cat([torch.zeros(1, dtype=torch.float64), integrate(edges[:-1], edges[1:]).cumsum(0)])
    table -= table[panels // 2].clone()

    def integral(u: Tensor) -> Tensor:
        panel = ((u + 0.5) * panels).floor().clamp(0, panels - 1).long().cpu()
        return (table[panel].to(u.device)) + integrate(edges[panel].to(u.device), u)

    return integral


def _check_assumptions(estimator: Estimator, quantizer: UniformQuantizer) -> Assumptions:
    # One value of max is as good as another where g is a function of u; the two extremes tell if it is not.
    ends = torch.as_tensor(quantizer.max, dtype=torch.float64)
    found = []
    for end in sorted({ends.min().item(), ends.max().item()}):
        found.append(_sweep(estimator, UniformQuantizer(quantizer.bits, end, quantizer.saturation)))
    (offsets, g), (_, other) = found[0], found[-1]
    if not torch.allclose(g, other, rtol=1e-6, atol=0):
        at = (g - other).abs().argmax()
        raise ValueError(
            f"{estimator} has no single α: its shape depends on the width of the range "
            f"(g = {g[at]:.4g} and {other[at]:.4g} at u = {offsets[at]:.4f} for the smallest and largest max)"
        )
    width = (offsets[1] - offsets[0]).item()
    slopes = [(g[far:] - g[:-far]).abs().max().item() / (far * width) for far in (1, 2)]
    jumps = slopes[0] > 1e-6 and slopes[0] > 1.8 * slopes[1]
    even = torch.allclose(g, g.flip(0), rtol=1e-6, atol=0)
    if not even and quantizer.saturation == "range":
        raise ValueError(
            f"{estimator} is not even in u, so its weight map moves the end of the range, where saturation 'range' "
            "stops the gradient: the counterpart would freeze other weights. Use saturation 'bin' or 'none'"
        )
    return Assumptions(g.min().item(), g.max().item(), float("inf") if jumps else slopes[0], even)


def _sweep(estimator: Estimator, quantizer: UniformQuantizer, points: int = 4096) -> tuple[Tensor, Tensor]:
    """Offsets and g over one interval, after the checks that g is positive, bounded and the same in every interval."""
    offsets = torch.linspace(-0.5, 0.5, points + 1, dtype=torch.float64)
    intervals = torch.arange(-(quantizer.num_levels // 2), quantizer.num_levels // 2 + 1, dtype=torch.float64)
    intervals = intervals[:: max(1, len(intervals) // 16)]
    w = (intervals[:, None] + offsets) * quantizer.step
    inside = torch.nextafter(w, torch.zeros_like(w))  # a point on an edge belongs to the interval nearer to zero
    alive, g = quantizer.alive(inside), estimator.derivative(inside, quantizer)
    typical = g[alive & (g != 0)].abs().nanmedian()
    bounded = torch.isfinite(g) & (g < 1e12 * typical)
    bad = alive & ~(bounded & (g > 1e-12 * typical))
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        where = f"w = {inside[row, column] / quantizer.max:.4g}·max (u = {offsets[column]:.4f})"
        kind = "positive" if bounded[row, column] else "bounded"
        raise ValueError(
            f"{estimator} is not {kind}: g = {g[row, column]:.4g} at {where}, where saturation "
            f"'{quantizer.saturation}' lets the gradient through; the theorem needs 0 < L₋ <= g <= L₊ there"
        )
    one = estimator.shape(offsets, quantizer)
    # Where g jumps, rounding decides which side shows: anything between its values next to a point will do.
    around = offsets + torch.tensor([[-1e-9], [0], [1e-9]], dtype=torch.float64)
    near = estimator.shape(around - around.round(), quantizer)
    same = ((g > near.amin(0) * (1 - 1e-6)) & (g < near.amax(0) * (1 + 1e-6))) | ~alive
    if not same.all():
        row, column = (~same).nonzero()[0].tolist()
        at = f"w = {inside[row, column] / quantizer.max:.4g}·max"
        raise ValueError(
            f"{estimator} is not cyclical: g = {g[row, column]:.4g} at {at} "
            f"but {one[column]:.4g} at the same offset u = {offsets[column]:.4f} in another interval"
        )
    return offsets, one

"""Checks the assumptions of the theorem on dense samples of g."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qat_ste.estimators import Estimator
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.quantizers.quantizer import Quantizer

POINTS = 4096
FARTHEST = 4.0  # largest |w|/max at which a g on the whole line is sampled


@dataclass(frozen=True)
class Assumptions:
    """Constants in the assumptions of arXiv 2405.05171, measured where the gradient passes.

    Attributes:
        lower, upper: L₋ and L₊, with L₋ <= g <= L₊.
        lipschitz: L' of g(u); divide by the interval's width for g(w). Infinite if g jumps: then M exists, but the
            error of an update shrinks with the learning rate, not with its square.
        even: whether g is even in u.
    """

    lower: float
    upper: float
    lipschitz: float
    even: bool


def check_assumptions(estimator: Estimator, quantizer: Quantizer) -> Assumptions:
    """Measures the constants of g.

    Raises:
        ValueError: the theorem does not apply; the message says which assumption fails and where.
    """
    estimator.check(quantizer)
    if isinstance(estimator, WholeLine):
        return _check_whole_line(estimator, quantizer)
    # A g that depends on u alone does not depend on max: compare it at the smallest and the largest max.
    max_ = torch.as_tensor(quantizer.max, dtype=torch.float64)
    offsets, g = _sample_interval(estimator, quantizer.with_max(max_.min()))
    _, g_largest = _sample_interval(estimator, quantizer.with_max(max_.max()))
    if not torch.allclose(g, g_largest, rtol=1e-6, atol=0):
        at = (g - g_largest).abs().argmax()
        raise ValueError(
            f"{estimator} has no single α: its shape depends on the width of the range "
            f"(g = {g[at]:.4g} and {g_largest[at]:.4g} at u = {offsets[at]:.4f} for the smallest and largest max)"
        )
    even = torch.allclose(g, g.flip(0), rtol=1e-6, atol=0)
    widths = quantizer.with_max(1.0).levels.diff()
    if not even and not torch.allclose(widths, widths[0], rtol=1e-6):
        raise ValueError(
            f"{estimator} is not even in u, so its weight map moves levels in proportion to the interval's width, and "
            "neighbouring intervals of different width would overlap. Use equally spaced levels"
        )
    if not even and quantizer.saturation == "range":
        raise ValueError(
            f"{estimator} is not even in u, so its weight map moves the end of the range, where saturation 'range' "
            "stops the gradient, and the counterpart would freeze other weights. Use saturation 'bin' or 'none'"
        )
    return Assumptions(g.min().item(), g.max().item(), _lipschitz(offsets, g), even)


def _check_whole_line(estimator: WholeLine, quantizer: Quantizer) -> Assumptions:
    end = min(estimator.reach, FARTHEST)
    x = torch.linspace(-end, end, 2 * POINTS + 2, dtype=torch.float64)[1:-1]  # without the ends and 0
    g = estimator.of(x)
    bad = ~(torch.isfinite(g) & (g > 0))
    if bad.any():
        raise ValueError(
            f"{estimator} is not positive: g = {g[bad][0]:.4g} at w = {x[bad][0]:.4g}·max, "
            f"g(w) <= 0 {_region(x.abs()[bad], end, 'w/max')}; the theorem needs 0 < L₋ <= g <= L₊ there"
        )
    thresholds = quantizer.with_max(1.0).thresholds
    between = (x > thresholds[0]) & (x < thresholds[-1]) & (g != 1)
    if between.any():
        raise ValueError(
            f"{estimator} is not cyclical: g = {g[between][0]:.4g} at w = {x[between][0]:.4g}·max, "
            "between two thresholds, where g on the whole line must be 1"
        )
    return Assumptions(g.min().item(), g.max().item(), _lipschitz(x * (quantizer.num_levels - 1) / 2, g), True)


def _lipschitz(points: Tensor, g: Tensor) -> float:
    """The Lipschitz constant of the samples g, or infinity if g jumps."""
    spacing = (points[1] - points[0]).item()
    near, far = [(g[step:] - g[:-step]).abs().max().item() / (step * spacing) for step in (1, 2)]
    return math.inf if near > 1e-6 and near > 1.8 * far else near  # a jump has half the slope at twice the distance


def _region(distances: Tensor, end: float, name: str) -> str:
    """Describes the region at these |``name``|, which lie between 0 and ``end``."""
    nearest, farthest = distances.min().item(), distances.max().item()
    resolution = 2.5 * end / POINTS
    if farthest < end - resolution:
        return (
            f"for |{name}| < {farthest:.2g}"
            if nearest < resolution
            else f"for {nearest:.2g} < |{name}| < {farthest:.2g}"
        )
    if nearest > end - resolution:
        return f"at |{name}| = {end:g}"
    return f"for |{name}| > {nearest:.2g}"


def _sample_interval(estimator: Estimator, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Offsets and g in one interval; raises ValueError unless g is positive, bounded and the same in each interval."""
    offsets = torch.linspace(-0.5, 0.5, POINTS + 1, dtype=torch.float64)
    levels, thresholds = quantizer.levels, quantizer.thresholds
    widths = levels.diff()
    # One more interval on either side, since the outermost interval repeats beyond the range.
    widths = torch.cat([widths[:1], widths, widths[-1:]])
    thresholds = torch.cat([thresholds[:1] - widths[0], thresholds, thresholds[-1:] + widths[-1]])
    sample = slice(None, None, max(1, len(widths) // 16))
    w = thresholds[sample, None] + offsets * widths[sample, None]
    w = torch.nextafter(w, torch.zeros_like(w))  # assigns a point on an edge to the interval nearer to zero
    alive, g = quantizer.alive(w), estimator.derivative(w, quantizer)
    typical = g[alive & (g != 0)].abs().nanmedian()
    bounded = torch.isfinite(g) & (g < 1e12 * typical)
    bad = alive & ~(bounded & (g > 1e-12 * typical))
    if bad.any():
        row = int(bad.sum(1).argmax())
        column = int(bad[row].nonzero()[0])
        where = f"w = {w[row, column] / quantizer.max:.4g}·max (u = {offsets[column]:.4f})"
        assumption = "positive" if bounded[row, column] else "bounded"
        symmetrical = torch.equal(bad[row], bad[row].flip(0)) and bool(bounded.all()) and not bool(bad[row].all())
        region = f", g(u) <= 0 {_region(offsets.abs()[bad[row]], 0.5, 'u')}" if symmetrical else ""
        raise ValueError(
            f"{estimator} is not {assumption}: g = {g[row, column]:.4g} at {where}{region}, where saturation "
            f"'{quantizer.saturation}' lets the gradient through; the theorem needs 0 < L₋ <= g <= L₊ there"
        )
    shape = estimator.shape(offsets, quantizer)
    # At a jump, rounding decides the side: accept any value between those just below and just above the point.
    nearby = offsets + torch.tensor([[-1e-9], [0], [1e-9]], dtype=torch.float64)
    g_nearby = estimator.shape(nearby - nearby.round(), quantizer)
    same = ((g > g_nearby.amin(0) * (1 - 1e-6)) & (g < g_nearby.amax(0) * (1 + 1e-6))) | ~alive
    if not same.all():
        row, column = (~same).nonzero()[0].tolist()
        raise ValueError(
            f"{estimator} is not cyclical: g = {g[row, column]:.4g} at w = {w[row, column] / quantizer.max:.4g}·max "
            f"but {shape[column]:.4g} at the same offset u = {offsets[column]:.4f} in another interval"
        )
    return offsets, shape

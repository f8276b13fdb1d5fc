"""What the theorem asks of an estimator, looked for on a dense sweep over g."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qat_ste.estimators import Estimator
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.quantizers.quantizer import Quantizer

POINTS = 4096
FARTHEST = 4.0  # in units of max: as far as a g on the whole line is looked at


@dataclass(frozen=True)
class Assumptions:
    """What arXiv 2405.05171 asks of g where the backward pass is alive, as found on a dense sweep.

    ``lower`` and ``upper`` are L₋ <= g <= L₊; ``lipschitz`` is L' for u in widths of an interval (divide by it for
    weights), or infinity where g jumps: M then still exists, but the error of a step no longer shrinks with its square.
    """

    lower: float
    upper: float
    lipschitz: float
    even: bool


def check_assumptions(estimator: Estimator, quantizer: Quantizer) -> Assumptions:
    """The constants of g.

    Raises:
        ValueError: the theorem cannot apply; the message says which assumption fails and where.
    """
    estimator.check(quantizer)
    if isinstance(estimator, WholeLine):
        return _whole_line(estimator, quantizer)
    # One value of max is as good as another where g is a function of u; the two extremes tell if it is not.
    ends = torch.as_tensor(quantizer.max, dtype=torch.float64)
    found = [_sweep(estimator, quantizer.with_max(end)) for end in (ends.min(), ends.max())]
    (offsets, g), (_, other) = found
    if not torch.allclose(g, other, rtol=1e-6, atol=0):
        at = (g - other).abs().argmax()
        raise ValueError(
            f"{estimator} has no single α: its shape depends on the width of the range "
            f"(g = {g[at]:.4g} and {other[at]:.4g} at u = {offsets[at]:.4f} for the smallest and largest max)"
        )
    even = torch.allclose(g, g.flip(0), rtol=1e-6, atol=0)
    widths = quantizer.with_max(1.0).levels.diff()
    if not even and not torch.allclose(widths, widths[0], rtol=1e-6):
        raise ValueError(
            f"{estimator} is not even in u, so its weight map moves each level by a share of the interval, and of two "
            "neighbouring intervals of different width one would overlap the other. Use equally spaced levels"
        )
    if not even and quantizer.saturation == "range":
        raise ValueError(
            f"{estimator} is not even in u, so its weight map moves the end of the range, where saturation 'range' "
            "stops the gradient: the counterpart would freeze other weights. Use saturation 'bin' or 'none'"
        )
    return Assumptions(g.min().item(), g.max().item(), _lipschitz(offsets, g), even)


def _whole_line(estimator: WholeLine, quantizer: Quantizer) -> Assumptions:
    end = min(estimator.reach, FARTHEST)
    x = torch.linspace(-end, end, 2 * POINTS + 2, dtype=torch.float64)[1:-1]  # neither end, nor 0
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
            "between two thresholds, where g on the whole line has to be 1"
        )
    return Assumptions(g.min().item(), g.max().item(), _lipschitz(x * (quantizer.num_levels - 1) / 2, g), True)


def _lipschitz(points: Tensor, g: Tensor) -> float:
    width = (points[1] - points[0]).item()
    slopes = [(g[far:] - g[:-far]).abs().max().item() / (far * width) for far in (1, 2)]
    return math.inf if slopes[0] > 1e-6 and slopes[0] > 1.8 * slopes[1] else slopes[0]


def _region(bad: Tensor, end: float, name: str) -> str:
    """Where an even function fails, of the distances from the middle at which it does."""
    nearest, farthest = bad.min().item(), bad.max().item()
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


def _sweep(estimator: Estimator, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Offsets and g over one interval, after the checks that g is positive, bounded and the same in every interval."""
    offsets = torch.linspace(-0.5, 0.5, POINTS + 1, dtype=torch.float64)
    levels, thresholds = quantizer.levels, quantizer.thresholds
    widths = levels.diff()
    # One interval more on either side: what lies beyond the range repeats the outermost.
    widths = torch.cat([widths[:1], widths, widths[-1:]])
    thresholds = torch.cat([thresholds[:1] - widths[0], thresholds, thresholds[-1:] + widths[-1]])
    some = slice(None, None, max(1, len(widths) // 16))
    w = thresholds[some, None] + offsets * widths[some, None]
    inside = torch.nextafter(w, torch.zeros_like(w))  # a point on an edge belongs to the interval nearer to zero
    alive, g = quantizer.alive(inside), estimator.derivative(inside, quantizer)
    typical = g[alive & (g != 0)].abs().nanmedian()
    bounded = torch.isfinite(g) & (g < 1e12 * typical)
    bad = alive & ~(bounded & (g > 1e-12 * typical))
    if bad.any():
        row = int(bad.sum(1).argmax())
        column = int(bad[row].nonzero()[0])
        where = f"w = {inside[row, column] / quantizer.max:.4g}·max (u = {offsets[column]:.4f})"
        kind = "positive" if bounded[row, column] else "bounded"
        symmetrical = torch.equal(bad[row], bad[row].flip(0)) and bool(bounded.all()) and not bool(bad[row].all())
        region = f", g(u) <= 0 {_region(offsets.abs()[bad[row]], 0.5, 'u')}" if symmetrical else ""
        raise ValueError(
            f"{estimator} is not {kind}: g = {g[row, column]:.4g} at {where}{region}, where saturation "
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

"""Draws the figures of a tuning study: differences to the STE with the margin, and the curves over learning rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from qat_ste.report.style import COLORS, plain
from qat_ste.report.tune.answers import BETTER, EQUIVALENT, UNDECIDED, WORSE
from qat_ste.report.tune.comparison import SINGLE, Comparison, Row
from qat_ste.report.tune.study import STE, Curve, complete
from qat_ste.report.tune.text import Units, units

Limits = tuple[float, float] | None
MARKS = {  # colour, marker and its filling by answer
    EQUIVALENT: ("#00694d", "o", "#00694d"),
    BETTER: (COLORS["ste"], ">", COLORS["ste"]),
    WORSE: (COLORS["naive"], "<", COLORS["naive"]),
    UNDECIDED: ("#555555", "o", "white"),
}
BAND, GREY = "#dfece7", "#9a9a9a"
LONGEST_NAME, LONGEST_LABEL, ACROSS = 28, 80, 4
WIDEST = 4  # the axis of differences reaches at most so many margins, or medians of the intervals' ends
DEEPEST = 2.5  # the panels show optima at most so many times as far below the best one as most neighbouring rates


def forest(comparison: Comparison) -> Figure:
    """Differences to the STE with their intervals, a row for each estimator."""
    rows, written = comparison.rows, units(comparison)
    figure = Figure(figsize=(5.6, 0.26 * len(rows) + 1.25))
    axis = figure.subplots()
    margin = (comparison.margin or 0.0) * written.factor
    reach = written.factor * _reach(rows, comparison.margin or 0.0)
    axis.axvspan(-margin, margin, color=BAND, lw=0, zorder=0)
    axis.axvline(0, color=GREY, lw=0.8, zorder=1)
    for y, row in enumerate(rows):
        _draw_difference(axis, y, row, written, reach)
    names = [plain(row.label, LONGEST_NAME) for row in rows]
    axis.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6))
    axis.set_yticks(range(len(rows)), names)
    signed = "test accuracy minus the STE's" if comparison.study.sign > 0 else "STE's test loss minus the estimator's"
    axis.set_xlabel(plain(f"{signed}{written.in_brackets}; right: better", LONGEST_LABEL))
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    present = [answer for answer in MARKS if any(row.answer == answer for row in rows)]
    handles = [
        Line2D([], [], color=color, marker=marker, mfc=fill, ms=5, lw=2, label=answer)
        for answer, (color, marker, fill) in ((answer, MARKS[answer]) for answer in present)
    ]
    figure.legend(handles=[*handles, Patch(color=BAND, label="margin")], loc="outside upper center", ncols=5)
    return figure


def _reach(rows: Iterable[Row], margin: float) -> float:
    """Half the length of the axis; a few far estimators do not squeeze the others."""
    means = [row.difference.mean for row in rows if row.difference.mean is not None]
    ends = [max(abs(e.mean), abs(e.low or 0.0), abs(e.high or 0.0)) for e in means]
    typical = max(margin, statistics.median(ends) if ends else 0.0)
    return 1.08 * max(1.25 * margin, *(end for end in [0.0, *ends] if end <= WIDEST * typical)) or 1.0


def _draw_difference(axis: Axes, y: int, row: Row, written: Units, reach: float) -> None:
    if y % 2:
        axis.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, lw=0, zorder=0)
    if row.difference.mean is None or row.difference.inner is None:
        axis.text(0, y, row.answer, ha="center", va="center", fontsize=7, color=GREY)
        return
    color, marker, fill = MARKS[row.answer]
    mean = row.difference.mean.mean * written.factor
    for estimate, width in ((row.difference.mean, 1.0), (row.difference.inner, 3.0)):
        if estimate.low is not None and estimate.high is not None:
            ends = [estimate.low * written.factor, estimate.high * written.factor]
            axis.plot(ends, [y, y], color=color, lw=width, solid_capstyle="butt", zorder=2)
    if abs(mean) < reach:
        axis.plot(mean, y, marker=marker, ms=4.5, color=color, mfc=fill, zorder=3)
        return
    side = math.copysign(1, mean)
    axis.annotate(
        written.signed(row.difference.mean.mean), (side * reach, y), (side * reach * 0.86, y), fontsize=7, color=color,
        ha="left" if side < 0 else "right", va="center", arrowprops={"arrowstyle": "->", "color": color},
    )  # fmt: skip


def curves(comparison: Comparison) -> Figure:
    """Validation metric over learning rates, a panel for each estimator, with the STE's curve in each."""
    study, written = comparison.study, units(comparison)
    across = min(ACROSS, len(study.labels))
    down = math.ceil(len(study.labels) / across)
    figure = Figure(figsize=(max(1.95 * across + 0.6, 4.2), 1.6 * down + 0.9))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    limits = _limits(comparison, written.factor)
    for place, (axis, label) in enumerate(zip(axes, study.labels, strict=False)):
        ste, factor = study.curves[STE], study.factor(label)
        _draw_curve(axis, ste, written, GREY)
        if study.remapped(label) and factor >= SINGLE:
            _draw_curve(axis, ste, written, COLORS["ste"], factor, dashes="--")
        _draw_curve(axis, study.curves[label], written, "black", band=True)
        _note(axis, study.curves[label], written, limits)
        axis.set_title(plain(label, LONGEST_NAME), fontsize=8)
        if place + across >= len(study.labels):  # no panel below
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("learning rate", fontsize=8)
    rates = [rate for curve in study.curves.values() for rate in (*study.grid, *curve.rates)]
    if (best := study.curves[STE].best) is not None:
        shifted = [best / factor for factor in map(study.factor, study.labels) if factor >= SINGLE]
        rates += [rate for rate in shifted if min(rates) / 10 <= rate <= max(rates) * 10]
    low, high = min(rates), max(rates)
    axes[0].set(xscale="log", xlim=(low / (high / low) ** 0.06, high * (high / low) ** 0.06), ylim=limits)
    decades = math.floor(math.log10(high) + 1e-9) - math.ceil(math.log10(low) - 1e-9)
    axes[0].xaxis.set_major_locator(LogLocator(numticks=6) if decades > 0 else FixedLocator([low, high]))
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
    for axis in axes[: len(study.labels) : across]:
        axis.set_ylabel(f"validation\n{plain(written.metric)}", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=7)
    for axis in axes[len(study.labels) :]:
        axis.remove()
    handles = [
        Line2D([], [], color="black", marker="o", ms=4, label="estimator"),
        Line2D([], [], color=GREY, marker="o", ms=4, label="STE"),
        Line2D([], [], color=COLORS["ste"], ls="--", marker="o", ms=4, label="STE, rate divided by α"),
    ]
    remapped = any(map(study.remapped, study.labels))
    figure.legend(handles=handles if remapped else handles[:2], loc="outside upper center", ncols=3)
    return figure


def _draw_curve(
    axis: Axes, curve: Curve, written: Units, color: str, factor: float = 1.0, dashes: str = "-", band: bool = False
) -> None:
    rates = list(curve.means)
    means = [curve.means[rate] * written.factor for rate in rates]
    shifted = [rate / factor for rate in rates]
    axis.plot(shifted, means, color=color, ls=dashes, lw=1.2)
    if band:
        seeds = [[value * written.factor for value in complete(curve.validation[rate])] for rate in rates]
        axis.fill_between(shifted, list(map(min, seeds)), list(map(max, seeds)), color=color, alpha=0.11, lw=0)
        for rate in curve.faults:
            axis.plot(rate, 0.05, marker="x", ms=4, color=color, transform=axis.get_xaxis_transform())
    if curve.best is not None:
        axis.plot(curve.best / factor, curve.means[curve.best] * written.factor, marker="o", ms=4, color=color)


def _note(axis: Axes, curve: Curve, written: Units, limits: Limits) -> None:
    """States what a panel cannot show: that no rate is eligible, or an optimum beyond the limits."""
    text = "no rate with all seeds"
    if curve.best is not None:
        mean = curve.means[curve.best]
        if limits is None or limits[0] <= mean * written.factor <= limits[1]:
            return
        text = f"best: {written.shown(mean)} {'↓' if mean * written.factor < limits[0] else '↑'}"
    axis.text(0.5, 0.2, text, transform=axis.transAxes, ha="center", fontsize=7)


def _limits(comparison: Comparison, factor: int) -> Limits:
    """Limits that show most optima and their neighbouring rates, however bad the other rates and estimators are."""
    sign = comparison.study.sign
    optima = []  # values of all seeds at the best rate, and at it and its neighbours; larger is better
    for curve in comparison.study.curves.values():
        if curve.best is not None:
            values = [[sign * value for value in complete(curve.validation[rate])] for rate in curve.means]
            place = list(curve.means).index(curve.best)
            optima.append((values[place], [*chain(*values[max(place - 1, 0) : place + 2])]))
    if not optima:
        return None
    better = sorted(optima, key=lambda optimum: -statistics.fmean(optimum[0]))[: len(optima) // 2 + 1]
    beside = sorted(chain(*(values for _, values in better)))
    top, most = max(beside), beside[len(beside) // 8]
    best = chain(*(values for values, _ in optima))
    worst = min([most, *(value for value in best if top - value <= DEEPEST * (top - most))])
    pad = 0.06 * (top - worst) or 0.05 * abs(worst) or 1.0
    low, high = sorted((sign * factor * (worst - pad), sign * factor * (top + pad)))
    return low, high

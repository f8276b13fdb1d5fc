"""Draws the figures of an atlas: two heat maps, estimators by optimizers, and the errors at both learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from qat_ste.report.atlas.cells import FALLING, NEAR, SAME, Atlas, Combination
from qat_ste.report.seeds import Estimate
from qat_ste.report.style import COLORS

ADJUSTED = {"remap": "remap: α·η, M(w₀)", "keep": "keep: nothing", "exact": "exact", "none": "none known"}
OFFSETS = {"ste": -0.25, "jitter": 0.0, "naive": 0.25}  # of a counterpart's line from the middle of its row
CELL, ROW = (0.62, 0.27), 0.24  # inches
NOTHING, STRIPE, PLAIN = "#f0f0f0", "#f5f5f5", "#555555"
Values = dict[tuple[str, str], tuple[Estimate | None, bool | None]]  # with whether the threshold is kept


def heat_maps(atlas: Atlas) -> Figure:
    """Distance at the smaller learning rate, and beside it the order of the STE's error in the learning rate."""
    names = list(atlas.estimators)
    width = max(2.2, CELL[0] * len(atlas.optimizers))
    longest, under = (max(len(_plain(name)) for name in axis) for axis in (names, atlas.optimizers))
    figure = Figure(figsize=(2 * width + 0.075 * longest + 1.6, CELL[1] * len(names) + 1.4 + 0.06 * under))
    left, right = figure.subplots(1, 2, sharey=True)
    distances: Values = {key: (c.distance, c.near) for key, c in atlas.combinations.items()}
    orders: Values = {key: (c.order, c.falling) for key, c in atlas.combinations.items()}
    shown = [distance.mean for distance, _ in distances.values() if distance is not None and distance.mean]
    limits = min([*shown, 1.0]), max([*shown, 10.0])
    _heat_map(figure, left, atlas, distances, limits, True, "cividis_r", lambda value: f"{value:.2g}",
              f"distance in % of learning rate\n(at most {NEAR:g}: near)")  # fmt: skip
    _heat_map(figure, right, atlas, orders, (-0.25, 1.0), False, "cividis", lambda value: f"{round(value, 2) + 0:+.2f}",
              f"order of the error in η\n(at least {FALLING:g}: getting nearer)")  # fmt: skip
    left.set_yticks(range(len(names)), [_plain(name) for name in names])
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
    return figure


def _heat_map(
    figure: Figure, axis: Axes, atlas: Atlas, values: Values, limits: tuple[float, float], logarithmic: bool,
    colors: str, written: Callable[[float], str], title: str,
) -> None:  # fmt: skip
    map_ = ScalarMappable(Normalize(*limits) if not logarithmic else LogNorm(*limits), colors)
    for x, optimizer in enumerate(atlas.optimizers):
        for y, estimator in enumerate(atlas.estimators):
            estimate, decided = values[estimator, optimizer]
            combination = atlas.combinations[estimator, optimizer]
            color: Any = NOTHING
            if estimate is not None and estimate.mean:
                color = map_.to_rgba(np.array(estimate.mean))
                text = written(estimate.mean).replace("-", "−") + ("?" if decided is None else "")
            else:
                text = "fault" if combination.faults else "0" if combination.label == SAME else "–"
            axis.add_patch(_box(x, y, color))
            axis.text(x, y, text, ha="center", va="center", fontsize=7, color=_readable(color))
    axis.set(xlim=(-0.5, len(atlas.optimizers) - 0.5), ylim=(len(atlas.estimators) - 0.5, -0.5))
    axis.set_xticks(range(len(atlas.optimizers)), [_plain(n) for n in atlas.optimizers], rotation=38, ha="right",
                    rotation_mode="anchor")  # fmt: skip
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(False)
    start = 0
    for adjustment, members in atlas.groups():
        axis.text(start - 0.45, -0.75, ADJUSTED[adjustment] if len(members) > 1 else adjustment, fontsize=7,
                  color=PLAIN, va="bottom")  # fmt: skip
        start += len(members)
        if start < len(atlas.optimizers):
            axis.axvline(start - 0.5, color="white", lw=5)
    bar = figure.colorbar(map_, ax=axis, location="bottom", shrink=0.7, aspect=34, extend="both")
    bar.set_label(title, fontsize=8)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set(rasterized=False, edgecolor="face")  # a PDF file without pixels
    if logarithmic:
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if limits[0] <= t <= limits[1]]
        bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.set_xticklabels([f"{tick:g}" for tick in ticks])


def errors_at_both_rates(atlas: Atlas) -> Figure:
    """Errors of the counterparts at both learning rates: a panel for each optimizer, a row for each estimator."""
    names, across = atlas.estimators, min(4, len(atlas.optimizers))
    down = math.ceil(len(atlas.optimizers) / across)
    height, longest = max(1.0, ROW * len(names)), max(len(_plain(name)) for name in names)
    figure = Figure(figsize=(1.75 * across + 0.075 * longest + 0.3, (height + 0.75) * down + 0.4))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for place, (axis, optimizer) in enumerate(zip(axes, atlas.optimizers, strict=False)):
        for row, estimator in enumerate(names):
            if row % 2:
                axis.axhspan(row - 0.5, row + 0.5, color=STRIPE, lw=0, zorder=0)
            _draw_errors(axis, row, atlas.combinations[estimator, optimizer])
        axis.set_title(f"{_plain(optimizer)}\n({atlas.adjustment(optimizer)})", fontsize=8)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        if place + across >= len(atlas.optimizers):  # no panel below
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("weight alignment error", fontsize=8)
    axes[0].set(xscale="log", ylim=(len(names) - 0.5, -0.5))
    axes[0].set_yticks(range(len(names)), [_plain(name) for name in names])
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[len(atlas.optimizers) :]:
        axis.remove()
    marks = [Line2D([], [], color=COLORS[name], marker="o", ms=4, label=name) for name in OFFSETS]
    rates = (("η", "white"), (f"η/{atlas.content['smaller']:g}", PLAIN))
    marks += [Line2D([], [], color=PLAIN, ls="", marker="o", ms=4, mfc=fill, label=label) for label, fill in rates]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))
    return figure


def _draw_errors(axis: Axes, row: int, combination: Combination) -> None:
    style = ":" if combination.common("refused") else "-"
    for name, offset in OFFSETS.items():
        estimates = [combination.over_seeds(name, lr) for lr in (0, 1)]
        if name == "naive" and combination.common("equivalence") != "remap":
            continue
        if name == "ste" and combination.label == SAME:
            axis.text(0.03, row + offset, "0", transform=axis.get_yaxis_transform(), fontsize=6, va="center",
                      color=COLORS[name])  # fmt: skip
        means = [estimate.mean for estimate in estimates if estimate is not None and estimate.mean > 0]
        if len(means) < len(estimates):
            continue
        y, color = row + offset, COLORS[name]
        axis.plot(means, [y, y], color=color, ls=style, lw=0.8, zorder=2)
        for value, fill in zip(means, ("white", color), strict=True):
            axis.plot(value, y, marker="o", ms=2.8, mew=0.7, color=color, mfc=fill, zorder=3)
        if (smaller := estimates[1]) is not None and smaller.low is not None and smaller.high is not None:
            axis.plot([smaller.low, smaller.high], [y, y], color=color, lw=3, alpha=0.25, zorder=1,
                      solid_capstyle="butt")  # fmt: skip


def _box(x: int, y: int, color: Any) -> Any:
    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=color, lw=0)


def _readable(color: Any) -> str:
    return "white" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) < 0.5 else "#1b1f24"


def _plain(text: str) -> str:
    """At most 32 characters of a name, without mathematical markup."""
    return (text if len(text) <= 32 else text[:31] + "…").replace("$", r"\$")

"""Figures of an atlas: two heat maps, estimators by optimizers, and the errors at both learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from qat_ste.report.atlas.cells import FALLING, NEAR, SAME, Atlas
from qat_ste.report.style import COLORS, line

ADJUSTED = {"remap": "remap: α·η, M(w₀)", "keep": "keep: nothing", "exact": "exact", "none": "none known"}
CELL = (0.62, 0.27)  # inches
NOTHING = "#f0f0f0"


def heat_maps(atlas: Atlas) -> Figure:
    """``equivalent_lr_jitter`` at the smaller learning rate, and beside it the measured order of the STE's error."""
    names = list(atlas.estimators)
    width = max(2.2, CELL[0] * len(atlas.optimizers))
    longest, under = (max(len(_plain(name)) for name in axis) for axis in (names, atlas.optimizers))
    figure = Figure(figsize=(2 * width + 0.075 * longest + 1.6, CELL[1] * len(names) + 1.4 + 0.06 * under))
    left, right = figure.subplots(1, 2, sharey=True)
    near = {key: _mean(pair.over_seeds("equivalent_lr_jitter")) for key, pair in atlas.pairs.items()}
    orders = {key: _mean(pair.order) for key, pair in atlas.pairs.items()}
    shown = [value for value in near.values() if value]
    limits = min([*shown, 1.0]), max([*shown, 10.0])
    _heat_map(figure, left, atlas, near, limits, True, "cividis_r", lambda value: f"{value:.2g}",
              f"distance in % of learning rate\n(at most {NEAR:g}: near)")  # fmt: skip
    _heat_map(figure, right, atlas, orders, (-0.25, 1.0), False, "cividis", lambda value: f"{value:+.2f}",
              f"order of the error in η\n(at least {FALLING:g}: getting nearer)")  # fmt: skip
    left.set_yticks(range(len(names)), [_plain(name) for name in names])
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
    return figure


def _heat_map(
    figure: Figure, axis: Axes, atlas: Atlas, values: dict[tuple[str, str], float | None], limits: tuple[float, float],
    logarithmic: bool, colors: str, written: Callable[[float], str], title: str,
) -> None:  # fmt: skip
    map_ = ScalarMappable(Normalize(*limits) if not logarithmic else LogNorm(*limits), colors)
    for x, optimizer in enumerate(atlas.optimizers):
        for y, estimator in enumerate(atlas.estimators):
            value = values[estimator, optimizer]
            pair = atlas.pairs[estimator, optimizer]
            color: Any = NOTHING
            if value:
                color, text = map_.to_rgba(np.array(value)), written(value)
            else:
                text = "fault" if pair.faults else "0" if pair.word == SAME else "–"
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
                  color="#555555", va="bottom")  # fmt: skip
        start += len(members)
        if start < len(atlas.optimizers):
            axis.axvline(start - 0.5, color="white", lw=5)
    bar = figure.colorbar(map_, ax=axis, location="bottom", shrink=0.7, aspect=34, extend="both")
    bar.set_label(title, fontsize=8)
    bar.outline.set_visible(False)
    if logarithmic:
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if limits[0] <= t <= limits[1]]
        bar.ax.xaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.set_xticklabels([f"{tick:g}" for tick in ticks])


def errors_at_both_rates(atlas: Atlas) -> Figure:
    """Errors of each counterpart at the larger and the smaller learning rate, a line an estimator."""
    across = min(4, len(atlas.optimizers))
    down = math.ceil(len(atlas.optimizers) / across)
    figure = Figure(figsize=(2.15 * across + 0.4, 2.2 * down + 0.6))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    legend: dict[str, Any] = {}
    for axis, optimizer in zip(axes, atlas.optimizers, strict=False):
        adjustment = atlas.adjustment(optimizer)
        names = [n for n in ("naive", "jitter", "ste") if n != "naive" or adjustment == "remap"]
        for name in names:
            for estimator in atlas.estimators:
                pair = atlas.pairs[estimator, optimizer]
                points = [_mean(pair.over_seeds(name, lr)) for lr in (0, 1)]
                if all(points):
                    refused = bool(pair.fact("refused"))
                    look: dict[str, Any] = {"color": COLORS[name], "ls": ":" if refused else line(name, 0)["ls"]}
                    (drawn,) = axis.plot([1, 0], points, lw=1.0, alpha=0.75, marker="o", ms=2.2, **look)
                    if not refused:
                        legend.setdefault(name, drawn)
        if any(atlas.pairs[estimator, optimizer].word == SAME for estimator in atlas.estimators):
            axis.text(0.5, 0.5, "ste: exactly 0", transform=axis.transAxes, ha="center", color=COLORS["ste"])
        axis.set_title(f"{_plain(optimizer)}\n({adjustment})", fontsize=8)
    axes[0].set(yscale="log", xlim=(-0.25, 1.25))
    axes[0].set_xticks([0, 1], [f"η/{atlas.content['smaller']:g}", "η"])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    for axis in axes[: len(atlas.optimizers) : across]:
        axis.set_ylabel("weight alignment error")
    for axis in axes[len(atlas.optimizers) :]:
        axis.remove()
    order = [name for name in ("ste", "naive", "jitter") if name in legend]
    figure.legend([legend[name] for name in order], order, loc="outside upper center", ncols=3)
    return figure


def _mean(summary: Any) -> float | None:
    return None if summary is None else float(summary.mean)


def _box(x: int, y: int, color: Any) -> Any:
    return Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, facecolor=color, lw=0)


def _readable(color: Any) -> str:
    return "white" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) < 0.5 else "#1b1f24"


def _plain(text: str) -> str:
    """Nothing in a name is mathematics to matplotlib."""
    return (text if len(text) <= 32 else text[:31] + "…").replace("$", r"\$")

"""Figures of many runs: final errors, and errors over training with their spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from qat_ste.report.style import COLORS, line, plain
from qat_ste.report.sweep.bands import SHARES, Band, bands
from qat_ste.report.sweep.claims import ERROR, NEGLIGIBLE, column_title
from qat_ste.report.sweep.groups import ROWS, SCALEDOWN, Group

UNMAPPED = f"{ERROR}_unmapped"
MARKERS = {"ste": "o", "jitter": "D", "naive": "^"}
ROW_COLORS = {"scaledown": "#56B4E9", "scaledown_matched": "#E69F00"}
LIMIT_WITHOUT_MAP = 10.0  # without M the error starts at a distance over a path of length 0


@dataclass(frozen=True)
class Curve:
    """A metric of one counterpart of a group over training."""

    group: Group
    counterpart: str
    label: str
    look: Mapping[str, Any]
    metric: str = ERROR

    @property
    def key(self) -> str:
        return f"{self.counterpart}/{self.metric}"


@dataclass
class Panel:
    """Title and curves of one axis."""

    title: str
    curves: list[Curve] = field(default_factory=list)


def panels_of_setup(rows: Mapping[str, Group]) -> list[Panel]:
    """Makes a panel for each row with its controls, and one for rows with a smaller learning rate."""
    panels = [_with_controls(ROWS.get(row, row), group) for row, group in rows.items() if row not in SCALEDOWN]
    smaller = [(row, group) for row, group in rows.items() if row in SCALEDOWN]
    if smaller:
        panel = Panel("smaller learning rate")
        if "default" in rows:
            panel.curves.append(Curve(rows["default"], "ste", "ste", line("ste", 0)))
        for row, group in smaller:
            look = {"color": ROW_COLORS[row], "ls": "-" if row == "scaledown" else "--"}
            panel.curves.append(Curve(group, "ste", column_title(row, "ste"), look))
        panels.insert(1, panel)
    return panels


def panels_of_groups(groups: Sequence[Group]) -> list[Panel]:
    """Makes a panel for each group."""
    return [_with_controls(title_of(group), group) for group in groups]


def title_of(group: Group) -> str:
    """Titles a group within its experiment by its row, if that is not the default, and its label."""
    row = "" if group.row == "default" and (group.label or not group.experiment) else ROWS.get(group.row, group.row)
    return ", ".join(filter(None, (row, group.label)))


def _with_controls(title: str, group: Group) -> Panel:
    panel = Panel(title)
    for number, name in enumerate(group.counterparts):
        panel.curves.append(Curve(group, name, plain(name), line(name, number)))
    if group.remapped and "ste" in group.counterparts:
        look = {"color": COLORS["ste"], "ls": ":"}
        panel.curves.append(Curve(group, "ste", "ste, compared without M", look, UNMAPPED))
    return panel


def error_over_training(panels: Sequence[Panel]) -> Figure:
    """Draws the weight alignment error over training: mean over seeds, band from the lowest to the highest."""
    across = min(len(panels), 2 if len(panels) <= 4 else 3)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(3.4 * across + 0.4, 2.4 * down + 0.5))
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    legend: dict[str, Any] = {}
    for axis, panel in zip(axes, panels, strict=False):
        for curve, band in _bands(panel):
            positive = np.isfinite(band.mean) & (band.mean > 0)
            if not positive.any():
                continue
            x, mean, high = 100 * SHARES[positive], band.mean[positive], band.high[positive]
            (drawn,) = axis.plot(x, mean, **curve.look)
            low = np.maximum(band.low[positive], mean / 1e3)  # a logarithmic axis has no 0
            axis.fill_between(x, low, high, color=drawn.get_color(), alpha=0.18, lw=0)
            legend.setdefault(curve.label, drawn)
        axis.set_title(_wrapped(panel.title))
        axis.tick_params(labelbottom=True)
    if not legend:
        raise ValueError(f"no metrics.jsonl of these runs has a row with {ERROR}")
    for axis in axes[: len(panels)][-across:]:
        axis.set_xlabel("share of the training (%)")
    for axis in axes[: len(panels) : across]:
        axis.set_ylabel("weight alignment error")
    for axis in axes[len(panels) :]:
        axis.remove()
    axes[0].set_yscale("log")
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], LIMIT_WITHOUT_MAP))
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=min(len(legend), 2 * across))
    return figure


def final_errors(panels: Mapping[str, Sequence[tuple[str, Group]]]) -> Figure:
    """Draws final weight alignment errors: dots: seeds; bars: geometric means; shaded: ``NEGLIGIBLE`` × jitter.

    Args:
        panels: the labelled rows by title, from the top; a panel with an empty title has none.
    """
    across = min(len(panels), 2)
    order = list(panels.items())
    heights = [max(len(rows) for _, rows in order[start : start + across]) for start in range(0, len(order), across)]
    longest = max(len(label) for rows in panels.values() for label, _ in rows)
    figure = Figure(
        figsize=(min(3.4 * across + 0.07 * longest + 0.6, 11), 0.5 * sum(heights) + 0.75 * len(heights) + 0.6)
    )
    grid = figure.add_gridspec(len(heights), across, height_ratios=[height + 0.6 for height in heights])
    left = _lowest([group for rows in panels.values() for _, group in rows]) / 1.8
    legend: dict[str, Any] = {}
    first: Axes | None = None
    for place, (title, rows) in enumerate(order):
        axis = figure.add_subplot(grid[place // across, place % across], sharex=first)
        first = first or axis
        for height, (_, group) in enumerate(rows):
            _dots_of_row(axis, height, group, left, legend)
        axis.set_yticks(range(len(rows)), [_wrapped(label, 44) for label, _ in rows])
        axis.set(xscale="log", ylim=(len(rows) - 0.5, -0.5))
        axis.set_title(_wrapped(title), loc="left")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        if place + across >= len(order):
            axis.set_xlabel("final weight alignment error")
        for height in range(1, len(rows)):
            axis.axhline(height - 0.5, color="#eeeeee", lw=0.8)
    if first is not None:
        first.set_xlim(left, max(first.get_xlim()[1], 10 * left))  # at least one decade, so that a tick has a label
        first.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=min(len(legend), 4))
    return figure


def _bands(panel: Panel) -> Iterator[tuple[Curve, Band]]:
    for group in {id(curve.group): curve.group for curve in panel.curves}.values():
        curves = [curve for curve in panel.curves if curve.group is group]
        by_key = bands(group, [curve.key for curve in curves])
        yield from ((curve, by_key[curve.key]) for curve in curves if curve.key in by_key)


def _dots_of_row(axis: Axes, height: int, group: Group, left: float, legend: dict[str, Any]) -> None:
    names = group.counterparts
    jitter = _geometric_mean(group, "jitter")
    if jitter:
        shade = axis.barh(
            height, NEGLIGIBLE * jitter - left, 0.92, left=left, color=COLORS["jitter"], alpha=0.13, lw=0, zorder=0
        )
        legend.setdefault(f"up to {NEGLIGIBLE:g} × jitter", shade)
    for number, name in enumerate(names):
        lane = height + (number - (len(names) - 1) / 2) * min(0.26, 0.8 / len(names))
        errors = list(group.values(name, ERROR).values())
        color = line(name, number)["color"]
        positive = [error for error in errors if error > 0]
        look: dict[str, Any] = {"marker": MARKERS.get(name, "s"), "s": 20, "color": color, "alpha": 0.75}
        dots = axis.scatter(positive, [lane] * len(positive), lw=0, zorder=3, **look)
        mean = _geometric_mean(group, name)
        if mean and len(errors) > 1:
            axis.plot([mean, mean], [lane - 0.13, lane + 0.13], color=color, lw=1.6, solid_capstyle="butt", zorder=4)
        if 0 in errors:
            axis.text(left * 1.08, lane, "exactly 0", color=color, fontsize=7, va="center")
        legend.setdefault(plain(name), dots)


def _geometric_mean(group: Group, name: str) -> float | None:
    errors = [error for error in group.values(name, ERROR).values() if error > 0]
    return math.exp(sum(map(math.log, errors)) / len(errors)) if errors else None


def _lowest(groups: Sequence[Group]) -> float:
    errors = [error for g in groups for name in g.counterparts for error in g.values(name, ERROR).values() if error > 0]
    return min(errors, default=1e-3)


def _wrapped(text: str, width: int = 52) -> str:
    """Wraps a text to at most two lines, without matplotlib's mathematics."""
    text = plain(text, 2 * width) if text else ""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width) if " " in text[:width] else width
    rest = text[cut:].strip()
    return text[:cut] + "\n" + (rest if len(rest) <= width else rest[: width - 1] + "…")

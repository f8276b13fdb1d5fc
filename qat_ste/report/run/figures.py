"""Draws the paper's figures from the logged rows and weights of one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from qat_ste.report.run.run_files import AGREEMENT, RunFiles
from qat_ste.report.style import COLORS, line, plain
from qat_ste.report.tables import steps


def curves(run: RunFiles) -> Figure:
    """Draws loss and accuracy of the reference and its main counterpart, and the difference of every counterpart."""
    panels = [("train_loss", "training loss")]
    if len(run.series("reference/validation_accuracy")):
        panels.append(("validation_accuracy", "test accuracy"))
    figure = Figure(figsize=(6.8, 2.3 * len(panels)))
    axes = figure.subplots(len(panels), 2, squeeze=False, sharex=True)
    for (key, title), (left, right) in zip(panels, axes, strict=True):
        reference = run.series(f"reference/{key}")
        if not len(reference):
            raise ValueError(f"metrics.jsonl has no row with reference/{key}")
        main = run.series(f"{run.main_counterpart}/{key}")
        left.plot(*reference.T, color=COLORS["reference"], label="reference", lw=2.6, alpha=0.4)
        left.plot(*main.T, label=plain(run.main_counterpart), **line(run.main_counterpart, 0))
        settled = len(reference) // 10  # differences of the first tenth are so large that the others would look flat
        differences = {name: run.series(f"{name}/{key}")[:, 1] - reference[:, 1] for name in run.counterparts}
        for number, (name, difference) in enumerate(differences.items()):
            right.plot(reference[:, 0], difference, label=plain(name), **line(name, number), alpha=0.9)
        limit = 1.2 * max(float(np.abs(difference[settled:]).max()) for difference in differences.values()) or 1e-3
        right.set_ylim(-limit, limit)
        right.axhline(0, color="#888888", lw=0.8)
        left.set_ylabel(title)
        right.set_ylabel("difference")
    axes[0, 0].set_yscale("log")
    if len(panels) > 1:
        axes[1, 0].set_ylim(max(0.0, float(np.quantile(reference[:, 1], 0.05)) - 0.05), 1.0)
    axes[0, 0].set_title(f"reference and {plain(run.main_counterpart, 20)}")
    axes[0, 1].set_title("counterpart minus reference")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    _legend_below(figure, axes[0, 0], axes[0, 1])
    return figure


def alignment_error(run: RunFiles) -> Figure:
    """Draws the weight alignment error of all counterparts over training."""
    figure = Figure(figsize=(4.6, 2.8))
    axis = figure.subplots()
    for number, name in enumerate(run.counterparts):
        series = run.series(f"{name}/weight_alignment_error")
        if not len(series) or not (series[:, 1] > 0).any():
            axis.plot([], [], label=f"{plain(name)} (exactly 0)", **line(name, number))
            continue
        axis.plot(*series.T, label=plain(name), **line(name, number))
        unmapped = run.series(f"{name}/weight_alignment_error_unmapped")
        if not np.array_equal(unmapped, series):
            color = line(name, number)["color"]
            axis.plot(*unmapped.T, label=f"{plain(name)}, weights not re-mapped", color=color, ls=":")
        bound = run.series(f"{name}/weight_alignment_error_bound")
        if len(bound):
            axis.plot(*bound.T, label=f"{plain(name)}, the paper's bound", color="#888888", lw=0.8)
            agreed = (run.series(f"{name}/{AGREEMENT}")[-len(bound) :, 1] == 1).cumprod().astype(bool)
            if agreed.any():
                axis.plot(*bound[agreed].T, label="… while all levels agree", color="#888888", lw=3, alpha=0.5)
    axis.set(yscale="log", xlabel="step", ylabel="weight alignment error\n(distance / path length)")
    axis.set_ylim(top=min(axis.get_ylim()[1], 10))  # without M the error starts at infinity: no path was travelled
    _legend_below(figure, axis)
    return figure


def segment_growth(run: RunFiles) -> Figure:
    """Draws the error of segments against their length, with its interval, for all counterparts."""
    lengths = [*run.segments]
    nearest = min((math.log(b / a) for a, b in pairwise(lengths)), default=1.0)
    shift = min(0.06, 0.4 * nearest / len(run.counterparts))  # so that bars do not hide each other
    figure = Figure(figsize=(4.6, 2.8))
    axis = figure.subplots()
    for number, name in enumerate(run.counterparts):
        of_lengths = {length: members[name]["weight_alignment_error"] or {"value": 0.0}
                      for length, members in run.segments.items() if name in members}  # fmt: skip
        errors = {length: error for length, error in of_lengths.items() if error["value"] > 0}
        style = line(name, number)
        if not errors:
            axis.plot([], [], label=f"{plain(name)} (exactly 0)" if of_lengths else plain(name), **style)
            continue
        beside = math.exp(shift * (number - (len(run.counterparts) - 1) / 2))
        x, values = np.array([*errors]) * beside, np.array([error["value"] for error in errors.values()])
        ends = [[error[end] or error["value"] for error in errors.values()] for end in ("low", "high")]
        axis.plot(x, values, label=plain(name), marker="o", ms=3.5, **style)
        axis.errorbar(x, values, np.abs(ends - values), fmt="none", ecolor=style["color"], capsize=2.5, elinewidth=1)
    left, right = lengths[0] / 1.5, lengths[-1] * 1.5
    floors = [max((values["floor"] or 0.0 for values in members.values()), default=0.0) or math.nan
              for members in run.segments.values()]  # fmt: skip
    axis.plot([left, *lengths, right], [floors[0], *floors, floors[-1]], color="#888888", ls="--", lw=1, zorder=1,
              label="floor of rounding")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="steps in a segment, $K$", xlim=(left, right))
    axis.set_ylabel("weight alignment error\n(distance / path length)")
    ticks = _apart(lengths, 0.06 * math.log(right / left))
    axis.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axis.set_xticks([], minor=True)
    _legend_below(figure, axis)
    return figure


def _apart(lengths: list[int], least: float) -> list[int]:
    """Returns the lengths whose logarithm is at least ``least`` above that of the one before."""
    kept = lengths[:1]
    for length in lengths[1:]:
        if math.log(length / kept[-1]) >= least:
            kept.append(length)
    return kept


def segment_errors(run: RunFiles) -> Figure:
    """Draws the error of each of the shortest segments over training, for all counterparts."""
    length = next(iter(run.segments))
    figure = Figure(figsize=(4.6, 2.8))
    axis = figure.subplots()
    for number, name in enumerate(run.counterparts):
        series = run.series(f"{name}@{length}/weight_alignment_error")
        series = series[series[:, 1] > 0]
        label = plain(name) if len(series) else f"{plain(name)} (exactly 0)"
        axis.plot(*series.T, label=label, **line(name, number) | {"lw": 1.1})
    axis.set(yscale="log", xlabel="step")
    axis.set_ylabel(f"error of a segment of {steps(length)}\n(distance / path length)")
    _legend_below(figure, axis)
    return figure


def alignment_scatter(run: RunFiles) -> Figure:
    """Draws final weights of the reference, raw and re-mapped, against those of the STE counterpart."""
    name = run.main_counterpart
    keys = (f"{name}/final", "reference/final", f"{name}/mapped_reference")
    weights, raw, mapped = (run.weights(key) for key in keys)
    panels = [("reference, raw", raw)]
    if not np.array_equal(raw, mapped):
        panels.append(("reference, re-mapped by M", mapped))
    figure = Figure(figsize=(3.3 * len(panels) + 0.6, 3.1))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, reference) in zip(axes, panels, strict=True):
        image = _density(axis, weights, reference)
        axis.set(title=title, xlabel=f"{plain(name, 20)} weight / max")
    axes[0].set_ylabel("reference weight / max")
    figure.colorbar(image, ax=axes, label="weights", shrink=0.85)
    return figure


def movement_scatter(run: RunFiles) -> Figure:
    """Draws initial against final weights of the reference and of the STE counterpart."""
    name = run.main_counterpart
    figure = Figure(figsize=(7.2, 3.1))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, member in zip(axes, ("reference", name), strict=True):
        image = _density(axis, run.weights(f"{member}/initial"), run.weights(f"{member}/final"))
        axis.set(title=plain(member, 20), xlabel="initial weight / max")
    axes[0].set_ylabel("final weight / max")
    figure.colorbar(image, ax=axes, label="weights", shrink=0.85)
    return figure


def _density(axis: Axes, x: np.ndarray, y: np.ndarray, limit: float = 1.3) -> Any:
    """Draws a histogram of points; those beyond the limits count at the edge. Returns the image for a colour bar."""
    edges = np.linspace(-limit, limit, 131)
    counts, _, _ = np.histogram2d(x.clip(-limit, limit), y.clip(-limit, limit), bins=(edges, edges))
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(1, max(2.0, counts.max()))
    image = axis.pcolormesh(edges, edges, shown, norm=norm, cmap="viridis", rasterized=True)
    axis.plot([-limit, limit], [-limit, limit], color="#D55E00", lw=0.7, ls="--")
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", axisbelow=True)
    return image


def _legend_below(figure: Figure, *axes: Axes) -> None:
    """Adds one legend for these axes below them, in as many columns as fit; the figure grows by its lines."""
    series = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.065 * max(map(len, series)) + 0.55)))  # inches of a character, and of a line
    figure.set_size_inches(width, height + 0.16 * math.ceil(len(series) / columns))
    figure.legend(series.values(), series.keys(), loc="outside lower center", ncols=columns)


FIGURES: dict[str, Callable[[RunFiles], Figure]] = {
    "alignment_error": alignment_error,
    "segment_growth": segment_growth,
    "segment_errors": segment_errors,
    "alignment_scatter": alignment_scatter,
    "movement_scatter": movement_scatter,
    "curves": curves,
}
OF_SEGMENTS = ("segment_growth", "segment_errors")


def names_of(run: RunFiles) -> list[str]:
    """Returns the names of the figures that a run has."""
    return [name for name in FIGURES if run.segments or name not in OF_SEGMENTS]

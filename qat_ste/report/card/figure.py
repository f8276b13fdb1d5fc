"""Draws the figure of a card: derivative, soft quantizer, weight map M, shift M(w) - w, density of M(w)."""

from __future__ import annotations

import textwrap

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from qat_ste.base.estimator_card import Card
from qat_ste.report.pages import png
from qat_ste.report.style import COLORS, STYLE

SIZE = (7.0, 4.6)
PANELS = {
    "axes.grid": False,
    "axes.titlelocation": "left",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
}
ESTIMATOR, STAIRCASE, FAULT = COLORS["ste"], COLORS["reference"], COLORS["naive"]
PLAIN, THRESHOLD, FROZEN = "#888888", "#bbbbbb", "#eeeeee"
LABELLED, CLOSEST = 5, 0.2  # with more levels, or closer ones as a share of the range, only three have numbers
MOST_ABOVE, MOST_BELOW = 16, 4  # intervals that fit into a panel of either row; of more the upper ones are shown
COLORS_IN_FILE = 32
WRAPPED = 96  # characters of a line across both panels
TALL = 40.0  # largest density over smallest from which the axis is logarithmic


def card_png(card: Card) -> bytes:
    """The figure as the content of a PNG file."""
    with mpl.rc_context(STYLE | PANELS):
        return png(card_figure(card), COLORS_IN_FILE)


def card_figure(card: Card) -> Figure:
    """Two panels above (g; ∫ g with the staircase), three below (M(w); M(w) - w; density of M(w)).

    Ticks are levels, thin lines are thresholds. If there is no M, its reason takes the place of the lower panels.
    """
    figure = Figure(figsize=SIZE)
    alpha = "" if card.lr_factor is None else f", α = {card.lr_factor:.4g}"
    uncovered = "; the theorem does not cover it" if card.not_covered else ""
    figure.suptitle(f"{card.name} on {card.grid}{alpha}{uncovered}", x=0.01, ha="left", fontsize=8.5, color="#444444")
    grid = figure.add_gridspec(2, 6)
    above = [figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])]
    _derivative(above[0], card)
    _soft_quantizer(above[1], card)
    panels = [(axis, MOST_ABOVE) for axis in above]
    if card.mapped is None or card.lr_factor is None:
        _refused(figure.add_subplot(grid[1, :]), card)
    else:
        below = [figure.add_subplot(grid[1, column : column + 2]) for column in (0, 2, 4)]
        _weight_map(below[0], card, card.mapped)
        _shift(below[1], card, card.mapped)
        _density(below[2], card, card.mapped, card.lr_factor)
        panels += [(axis, MOST_BELOW) for axis in below]
    for axis, most in panels:
        _mark_grid(axis, card, _lowest_shown(card, most))
    return figure


def _derivative(axis: Axes, card: Card) -> None:
    axis.plot(card.w, card.g, color=ESTIMATOR, zorder=3)
    axis.axhline(0, color=PLAIN, lw=0.6)
    fails = card.alive & ~(card.g > 1e-12 * card.upper)
    if fails.any():
        axis.plot(card.w[fails], card.g[fails], ".", color=FAULT, ms=6, clip_on=False, zorder=4)
    axis.set(title="derivative g(w)", xlabel="w / max")
    axis.set_ylim(min(0.0, float(card.g.min())), 1.08 * float(card.g.max()))
    _shade_frozen(axis, card)


def _soft_quantizer(axis: Axes, card: Card) -> None:
    edges = [card.w[0], *card.thresholds, card.w[-1]]
    axis.stairs(card.levels, edges, baseline=None, color=STAIRCASE, lw=0.9, label="forward")
    axis.plot(card.w, card.soft, color=ESTIMATOR, label="backward: ∫ g")
    axis.set(title="quantizer, hard and soft", xlabel="w / max")
    lowest = _lowest_shown(card, MOST_ABOVE)
    shown = np.concatenate([card.soft[card.w >= lowest], card.levels[card.levels >= lowest]])
    _number_levels(axis.yaxis, card, lowest)
    margin = 0.05 * (shown.max() - shown.min())
    axis.set_ylim(shown.min() - margin, shown.max() + margin)
    _shade_frozen(axis, card)
    _legend(axis, "upper left")


def _weight_map(axis: Axes, card: Card, mapped: np.ndarray) -> None:
    lowest, highest = _lowest_shown(card, MOST_BELOW), card.w[-1]
    axis.plot([lowest, highest], [lowest, highest], color=PLAIN, lw=0.9, ls="--", label="identity")
    axis.plot(card.w, mapped, color=ESTIMATOR, label="M")
    axis.set(title="weight map M(w)", xlabel="w / max")
    _number_levels(axis.yaxis, card, lowest)
    shown = mapped[card.w >= lowest]
    axis.set_ylim(max(1.5 * card.w[0], shown.min()), min(1.5 * highest, shown.max()))
    _shade_frozen(axis, card)
    _legend(axis, "upper left")


def _shift(axis: Axes, card: Card, mapped: np.ndarray) -> None:
    """M(w) - w in widths of the weight's interval: shows a map that lies close to the identity."""
    interval = np.searchsorted(card.levels, card.w).clip(1, len(card.levels) - 1)
    shift = (mapped - card.w) / (card.levels[interval] - card.levels[interval - 1])
    shift[np.abs(shift) < 1e-9] = 0
    axis.axhline(0, color=PLAIN, lw=0.9, ls="--")
    axis.plot(card.w, shift, color=ESTIMATOR)
    axis.set(title="M(w) − w, in steps", xlabel="w / max")
    shown = shift[card.w >= _lowest_shown(card, MOST_BELOW)]
    inside = shift[(card.w >= card.levels[0]) & (card.w <= card.levels[-1])]
    largest = float(np.abs(inside).max() or np.abs(shown).max() or 0.01)
    axis.set_ylim(-1.15 * largest, 1.15 * largest)
    axis.yaxis.set_major_formatter("{x:g}")
    _shade_frozen(axis, card)


def _density(axis: Axes, card: Card, mapped: np.ndarray, lr_factor: float) -> None:
    """Density of M(w) for w uniform inside the range, relative to that of w: 1/(dM/dw) = g/α at M(w)."""
    inside = (card.w > card.levels[0]) & (card.w < card.levels[-1]) & (card.g > 0)
    z, density = mapped[inside], card.g[inside] / lr_factor
    lowest = _lowest_shown(card, MOST_BELOW)
    shown = (z >= lowest) & (z <= card.w[-1])
    z, density = z[shown], density[shown]
    axis.plot(z, density, color=ESTIMATOR, label="M(w)")
    axis.axhline(1, color=PLAIN, lw=0.9, ls="--", label="w")
    if density.max() > TALL * density.min():
        axis.set_yscale("log", subs=[])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_ylim(0.7 * density.min(), 5 * density.max())
    else:
        axis.set_ylim(0, 1.25 * density.max())
    axis.fill_between(z, density, axis.get_ylim()[0], color=ESTIMATOR, alpha=0.18, lw=0)
    axis.set(title="density of M(w)", xlabel="M(w) / max")
    _legend(axis, "upper right" if lowest > card.levels[0] else "upper center", columns=2)


def _refused(axis: Axes, card: Card) -> None:
    """Writes why there is no weight map."""
    failing = [flag.name for flag in card.flags if flag.holds is False]
    axis.set_title(f"no weight map: g is not {failing[0]}" if failing else "no weight map", color=FAULT)
    text = "\n".join(textwrap.wrap(card.refusal, WRAPPED))
    axis.text(0, 0.95, text, transform=axis.transAxes, va="top", linespacing=1.4, in_layout=False)
    axis.set_axis_off()


def _lowest_shown(card: Card, most: int) -> float:
    return float(card.w[0] if len(card.thresholds) <= most else card.levels[-1 - most])


def _mark_grid(axis: Axes, card: Card, lowest: float) -> None:
    _number_levels(axis.xaxis, card, lowest)
    axis.set_xlim(lowest, card.w[-1])
    shown = card.thresholds[card.thresholds > lowest]
    axis.vlines(shown, 0, 1, transform=axis.get_xaxis_transform(), color=THRESHOLD, lw=0.5, zorder=0)


def _number_levels(axis: Axis, card: Card, lowest: float) -> None:
    """A tick at each level; if levels are many or close, only the ends and the middle one have numbers."""
    shown = card.levels[card.levels >= lowest]
    middle = shown[np.abs(shown - (shown[0] + shown[-1]) / 2).argmin()]
    spacious = len(shown) <= LABELLED and np.diff(shown).min() > CLOSEST * (shown[-1] - shown[0])
    numbered = shown if spacious else [shown[0], middle, shown[-1]]
    axis.set_ticks(shown, [f"{level:.2g}".replace("-", "−") if level in numbered else "" for level in shown])


def _shade_frozen(axis: Axes, card: Card) -> None:
    """Shades the weights through which no gradient passes."""
    changes = np.flatnonzero(np.diff(np.concatenate([[True], card.alive, [True]]).astype(int)))
    for first, last in changes.reshape(-1, 2):
        axis.axvspan(card.w[first], card.w[last - 1], color=FROZEN, lw=0, zorder=-1)


def _legend(axis: Axes, place: str, columns: int = 1) -> None:
    axis.legend(loc=place, ncols=columns, fontsize=7.5, borderaxespad=0.2, handlelength=1.4, labelspacing=0.2)

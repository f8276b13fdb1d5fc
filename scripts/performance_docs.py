#!/usr/bin/env python3
"""Write docs/performance.md and docs/performance/scaling.png from the record of scripts/benchmark.py.

python scripts/benchmark.py --json docs/performance/record.json     measure
python scripts/performance_docs.py                                  write the page and its figure
python scripts/performance_docs.py --check                          exit with 1 if the page is stale
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs_page import DOCS, filled, parser, publish
from qat_ste.report.style import COLORS, DOTS_PER_INCH, STYLE
from qat_ste.report.writers import markdown_lines

FOLDER = DOCS / "performance"
SECTIONS = ("steps", "phases", "others", "weights", "members", "memory")
Figures = Sequence[dict[str, Any]]


def page(record: dict[str, Any]) -> str:
    """Returns the page as Markdown."""
    sections = record["sections"]
    all_figures = [figure for figures in sections.values() for figure in figures]
    return filled(
        "performance",
        bars=_bars([figure for figure in all_figures if figure["bar"] is not None]),
        weights=_weights(sections["weights"]),
        steps=_pivot(sections["steps"], "what", "setting"),
        **{name: _pivot(sections[name], "setting", "what") for name in ("phases", "others", "members", "memory")},
        **record["machine"],
    )


def _bars(figures: Figures) -> str:
    lines = [["setting", "what", "measured", "at most", ""]]
    for figure in figures:
        value, bar = figure["value"], figure["bar"]
        met = "not measured" if value is None else "met" if value <= bar else "missed"
        lines.append([figure["setting"], figure["what"], _shown(figure), _with_unit(bar, figure["unit"]), met])
    return markdown_lines(lines, left=2)


def _pivot(figures: Figures, columns: str, rows: str) -> str:
    """Table of figures by two of their keys, in order of first appearance."""
    cells = {(figure[rows], figure[columns]): _shown(figure) for figure in figures}
    header = _unique(figure[columns] for figure in figures)
    titles = _unique(figure[rows] for figure in figures)
    lines = [["", *header], *([title, *(cells.get((title, name), "") for name in header)] for title in titles)]
    return markdown_lines(lines, left=1)


def _weights(figures: Figures) -> str:
    """Table of the time per step of two members, and per weight and member."""
    kinds = _unique(figure["what"] for figure in figures)
    cells = {(f["x"], f["what"]): f"{_shown(f)}, {1e9 * f['value'] / f['x'] / 2:.3g} ns" for f in figures}
    lines = [["quantized weights", *kinds]]
    for x in _unique(figure["x"] for figure in figures):
        lines.append([f"{x:,}", *(cells[x, what] for what in kinds)])
    return markdown_lines(lines, left=0)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _shown(figure: dict[str, Any]) -> str:
    value, low, high, unit = (figure[key] for key in ("value", "low", "high", "unit"))
    if value is None:
        return figure["note"]
    if unit == "s" and value < 1:
        value, low, high, unit = 1e3 * value, 1e3 * low, 1e3 * high, "ms"
    quartiles = "" if low is None else f" ({_number(low, unit)} to {_number(high, unit)})"
    return f"{_with_unit(value, unit)}{quartiles}"


def _with_unit(value: float, unit: str) -> str:
    return _number(value, unit) if unit == "B" else f"{_number(value, unit)} {unit}"


def _number(value: float, unit: str) -> str:
    if unit == "×":
        return f"{value:.3f}"
    if unit == "%":
        return f"{100 * value:.{1 if abs(value) < 0.1 else 0}f}"
    return f"{value:.3g}"


def scaling(record: dict[str, Any]) -> Figure:
    """Draws the time of a step against quantized weights and against members."""
    figure = Figure(figsize=(7.2, 2.9))
    left, right = figure.subplots(1, 2)
    weights, members = record["sections"]["weights"], record["sections"]["members"]
    colors = COLORS["ste"], COLORS["naive"], COLORS["reference"]
    for what, color in zip(_unique(f["what"] for f in weights), colors, strict=True):
        _line(left, [f for f in weights if f["what"] == what], color, what)
    _guide(left, [f for f in weights if f["what"] == weights[0]["what"]][-1], min(f["x"] for f in weights))
    left.set(xscale="log", yscale="log", xlabel="quantized weights", ylabel="seconds per step", title="Two members")
    left.legend(loc="upper left")
    _line(right, members, COLORS["ste"], members[0]["setting"])
    _guide(right, members[0], members[-1]["x"])
    right.set(xlabel="members", ylabel="plain steps of one network", title="All metrics", ylim=(0, None))
    right.set_xticks([f["x"] for f in members])
    right.legend(loc="upper left")
    return figure


def _line(axes: Axes, figures: Figures, color: str, label: str) -> None:
    x, y, low, high = ([f[key] for f in figures] for key in ("x", "value", "low", "high"))
    axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    axes.plot(x, y, "o-", color=color, ms=3.5, label=label)


def _guide(axes: Axes, through: dict[str, Any], to: float) -> None:
    """Draws proportional growth through one figure, from its x to another."""
    ends = [through["x"], to]
    axes.plot(ends, [through["value"] / through["x"] * x for x in ends], "--", color="#777777", lw=1, zorder=0)


def _draw(record: dict[str, Any], file: Path) -> None:
    with rc_context(STYLE):
        scaling(record).savefig(file, dpi=DOTS_PER_INCH)


def main() -> int:
    check = parser(__doc__).parse_args().check
    record = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    if missing := [name for name in SECTIONS if name not in record["sections"]]:
        print(f"the record lacks {', '.join(missing)}: run scripts/benchmark.py without --only", file=sys.stderr)
        return 2
    return publish(DOCS / "performance.md", page(record), check, {"scaling.png": partial(_draw, record)})


if __name__ == "__main__":
    sys.exit(main())

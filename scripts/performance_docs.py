#!/usr/bin/env python3
"""Writes docs/performance.md and docs/performance/scaling.png from the record of scripts/benchmark.py.

python scripts/benchmark.py --json docs/performance/record.json     measure
python scripts/performance_docs.py                                  write the page and its figure
python scripts/performance_docs.py --check                          exit code 1 if the page is not the record's
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qat_ste.report.style import COLORS, DOTS_PER_INCH, STYLE
from qat_ste.report.writers import markdown_lines

DOCS = Path(__file__).resolve().parents[1] / "docs"
SECTIONS = ("steps", "parts", "others", "weights", "members", "memory")
Figures = Sequence[dict[str, Any]]
INTRODUCTION = """\
# Performance

Made by `scripts/performance_docs.py` from `docs/performance/record.json`, which `scripts/benchmark.py --json` writes:
change those, not this page.

What is compared takes its steps in turn, in one process, every other round in reverse order; figures are medians over
rounds of the ratio within a round, quartiles in brackets. *Plain* is an fp32 training step of the same network without
quantizers, metrics and loggers, taken as often as there are members. Members have 2 bits on the convolutions, a tanh
estimator and momentum; metrics are observed at every step, and a row of them is made every 10.
"""
EXECUTION = """\
## How steps are executed

* `runtime.execution=eager` is the reference; on a CPU it gives the same numbers to the bit each time. `compile` puts
  forward and backward passes through `torch.compile`: equal but for rounding (losses to 1e-5 after six steps) and for
  dropout, whose noise a compiler draws in its own way, the same for all members. `graph` captures the passes of each
  member as CUDA graphs, on one GPU.
* `auto`, the default, is eager on a CPU and on several ranks. On one GPU a spare member takes seven steps in each way,
  and the way is taken that will have done the run's steps first, what starting it takes included; one that fails is
  out. `run.log` says which it was, and a run that is continued keeps it. On a CPU that would make numbers depend on
  the clock, for little: compiled, `keras_cnn` takes 0.85 to 1.5 times as long by machine, after 16 s of compilation.
* The ways for a GPU have been tested on a CPU alone, with a stand-in for CUDA's graphs: none has run on a GPU.
* Quantizer, estimator and metrics work on flat buffers of all quantized weights, beside the passes, which are those of
  the plain network on quantized values. Changes of levels are worked through many steps at a time.
* The command tells glibc to keep up to 1 GB of freed memory. By itself it may hand activations back after each
  step: 5,000 page faults a step of `keras_cnn`, which takes 12 to 14 ms without them and 12 to 23 with them, by chance.
  The benchmark does the same, for all that it compares.
"""
STEPS = """\
## A comparison beside plain training

The textbook network is `keras_cnn` as it is written down everywhere, channels outermost and ReLU before the pooling, in
plain fp32 steps: the same function, slower.
"""
PARTS = """\
## Where the time goes

Shares of the plain steps of both members. Forward, backward and optimizer are the plain networks'; what is called once
is worth its share divided by the steps between two such calls. Batches come from memory.
"""
OTHERS = """\
## Other ways to an STE

One network with the STE on the weights of its convolutions, no metrics: a member of a cohort of one, and
`quantize_weights` in a loop of one's own, beside the same loop with `torch.fake_quantize_per_tensor_affine` as a
parametrization and with Brevitas' `QuantConv2d` (integer weights of 2 bits, one constant scale a tensor).
"""
GROWTH = """\
## How it grows

![Time of a step against quantized weights and against members](performance/scaling.png)

Left: two members of one square dense layer on one image, whose own work is two passes over its weights; all of them
move. Right: members of `keras_cnn`. Dashed: in proportion. In the table, time a step and time a weight and member.
"""
MEMORY = """\
## Memory of the metrics

What they hold between steps, however many steps: levels, counts, hashes, previous weights, sums. Sequences are kept of
up to 1,000,000 weights (`metrics.sequence_weights`), and of as many changes at most before they are compressed.
"""


def page(record: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    sections = record["sections"]
    every = [figure for figures in sections.values() for figure in figures]
    parts = [
        INTRODUCTION,
        _machine(record["machine"]),
        "## Bars\n",
        _bars([figure for figure in every if figure["bar"] is not None]),
        EXECUTION,
        STEPS,
        _pivot(sections["steps"], "what", "setting"),
        PARTS,
        _pivot(sections["parts"], "setting", "what"),
        OTHERS,
        _pivot(sections["others"], "setting", "what"),
        GROWTH,
        _weights(sections["weights"]),
        _pivot(sections["members"], "setting", "what"),
        MEMORY,
        _pivot(sections["memory"], "setting", "what"),
    ]
    return "\n".join(parts)


def _machine(about: dict[str, Any]) -> str:
    return f"On {about['processor']}, threads: {about['threads']}, Python {about['python']}, torch {about['torch']}.\n"


def _bars(figures: Figures) -> str:
    lines = [["setting", "what", "measured", "at most", ""]]
    for figure in figures:
        lines.append(
            [figure["setting"], figure["what"], _shown(figure), _with_unit(figure["bar"], figure["unit"]), _met(figure)]
        )
    return markdown_lines(lines, left=2) + "\n"


def _met(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not measured"
    return "met" if figure["value"] <= figure["bar"] else "missed"


def _pivot(figures: Figures, columns: str, rows: str) -> str:
    """A table of figures by two of their keys, in the order in which they first appear."""
    cells = {(figure[rows], figure[columns]): _shown(figure) for figure in figures}
    header = _unique(figure[columns] for figure in figures)
    titles = _unique(figure[rows] for figure in figures)
    lines = [["", *header], *([title, *(cells.get((title, name), "") for name in header)] for title in titles)]
    return markdown_lines(lines, left=1) + "\n"


def _weights(figures: Figures) -> str:
    """Seconds a step of two members, and nanoseconds a weight and member."""
    kinds = _unique(figure["what"] for figure in figures)
    cells = {(f["x"], f["what"]): f"{_shown(f)}, {1e9 * f['value'] / f['x'] / 2:.3g} ns" for f in figures}
    lines = [["quantized weights", *kinds]]
    for x in _unique(figure["x"] for figure in figures):
        lines.append([f"{x:,}", *(cells[x, what] for what in kinds)])
    return markdown_lines(lines, left=0) + "\n"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _shown(figure: dict[str, Any]) -> str:
    value, low, high, unit = (figure[key] for key in ("value", "low", "high", "unit"))
    if value is None:
        return figure["note"]
    if unit == "s" and value < 1:
        value, low, high, unit = 1e3 * value, 1e3 * low, 1e3 * high, "ms"
    between = "" if low is None else f" ({_number(low, unit)} to {_number(high, unit)})"
    return f"{_with_unit(value, unit)}{between}"


def _with_unit(value: float, unit: str) -> str:
    return _number(value, unit) if unit == "B" else f"{_number(value, unit)} {unit}"


def _number(value: float, unit: str) -> str:
    if unit == "×":
        return f"{value:.3f}"
    if unit == "%":
        return f"{100 * value:.{1 if abs(value) < 0.1 else 0}f}"
    return f"{value:.3g}"


def scaling(record: dict[str, Any]) -> Figure:
    """Time of a step against quantized weights, and against members."""
    figure = Figure(figsize=(7.2, 2.9))
    left, right = figure.subplots(1, 2)
    weights, members = record["sections"]["weights"], record["sections"]["members"]
    colors = COLORS["ste"], COLORS["naive"], COLORS["reference"]
    for what, color in zip(_unique(f["what"] for f in weights), colors, strict=True):
        _line(left, [f for f in weights if f["what"] == what], color, what)
    _guide(left, [f for f in weights if f["what"] == weights[0]["what"]][-1], min(f["x"] for f in weights))
    left.set(xscale="log", yscale="log", xlabel="quantized weights", ylabel="seconds a step", title="Two members")
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
    """In proportion, from a figure to another place."""
    x = [through["x"], to]
    axes.plot(x, [through["value"] / through["x"] * place for place in x], "--", color="#777777", lw=1, zorder=0)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    check = parser.parse_args().check
    record = json.loads((DOCS / "performance" / "record.json").read_text(encoding="utf-8"))
    lacking = [name for name in SECTIONS if name not in record["sections"]]
    if lacking:
        print(f"the record lacks {', '.join(lacking)}: run scripts/benchmark.py without --only", file=sys.stderr)
        return 2
    path, figure, text = DOCS / "performance.md", DOCS / "performance" / "scaling.png", page(record)
    if check:
        if not figure.is_file() or not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is stale: run python scripts/performance_docs.py", file=sys.stderr)
            return 1
        return 0
    with rc_context(STYLE):
        scaling(record).savefig(figure, dpi=DOTS_PER_INCH)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Writes docs/reliability.md and its figures from the record of scripts/faults.py.

python scripts/faults.py --json docs/reliability/record.json     run the campaign
python scripts/reliability_docs.py                               write the page and its figures
python scripts/reliability_docs.py --check                       exit code 1 if the page is not the record's
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qat_ste.report.style import COLORS, DOTS_PER_INCH, STYLE
from qat_ste.report.writers import markdown_lines

DOCS = Path(__file__).resolve().parents[1] / "docs"
Lines = Sequence[dict[str, Any]]
INTRODUCTION = """\
# Reliability

Made by `scripts/reliability_docs.py` from `docs/reliability/record.json`, which `scripts/faults.py --json` writes:
change those, not this page.

A run that nobody watches is true, whole and can be continued, whatever happened to it. After every fault below:

* nothing that was told is lost: rows of metrics up to the last checkpoint are there, once, and every file can be read;
* the same command goes on, and its numbers are those of an undisturbed run, bit for bit on a CPU;
* what cannot go on ends with one line that says why, never with a traceback, and leaves what was there before;
* what is not finite stops the run with the step, the member and the tensor, before it is told or saved.

`python scripts/faults.py` runs all of it against the installed command on real data, `--only WORD…` some of it,
`--rounds N` more often or less, `--list` tells the names. A fault *survived* where the command ended well, or the run
did when continued; the others *ended with* the line given and are none the worse for it, unless the table says
**did not hold**.
"""
GROUPS = {  # in the page's order; what the record has beside them follows
    "processes": "Processes are killed, stopped and told to end at random moments, so drawn that each phase is hit. "
    "A kill counts for the phase that it really fell in; *between* is outside of those named.",
    "storage": "Disks that are full or cannot be written, files that are gone, cut off or altered.",
    "two at once": "The same folder, twice at a time.",
    "numbers": "Numbers that are none and tensors that are odd, through `compare` on the digits and through the "
    "command. Results are held beside a slow, plain training of the same network, or an ordinary one bit for bit.",
    "surroundings": "Homes, fonts, terminals, networks and clocks that are not what they should be.",
    "inputs": "Wrong values of every key of the configuration and of every argument of `compare`, made from its type "
    "and range: refused before any training in one line that names it, or accepted and meaningful.",
    "readers": "Files by strangers, and files damaged at random: nothing in them is executed.",
    "endurance": "Long runs and long files. After the first 1,000 steps of a run its memory may vary by 24 MiB, in "
    "which change events wait to be compressed, and by 5 kB a row: 0.8 are the row, which a checkpoint restores, the "
    "others are taken while one is written. Open files may be two more meanwhile, threads none. Of a file of rows a "
    "report takes at most 400 MiB, and the highest and lowest value at random places have to be in the figure.",
}
SERIES = re.compile(r"(\w+) at (\d+)")  # a figure that is one of many samples over the steps
PANELS = (("memory", "resident memory (MiB)", 2**20), ("handles", "open files", 1), ("threads", "threads", 1))


def page(record: Mapping[str, dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    groups = by_group(record)
    parts = [INTRODUCTION, _totals(record)]
    for group, lines in groups.items():
        parts += [f"## {group.capitalize()}\n", GROUPS.get(group, "") + "\n" if group in GROUPS else "", _table(lines)]
        parts += [_counts(lines), _figures(lines)]
        if any(series_of(line) for line in lines):
            parts.append(f"![Memory, open files and threads over the steps of long runs](reliability/{group}.png)\n")
    return "\n".join(filter(None, parts))


def by_group(record: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Lines of the record by group, in the page's order."""
    names = {line["group"] for line in record.values()}
    order = [name for name in GROUPS if name in names] + sorted(names - GROUPS.keys())
    return {name: [line for _, line in sorted(record.items()) if line["group"] == name] for name in order}


def _totals(record: Mapping[str, dict[str, Any]]) -> str:
    rounds, lost, differing = (
        sum(line[key] for line in record.values()) for key in ("rounds", "lost_rows", "differing")
    )
    broken = sum(bool(line["broken"]) for line in record.values())
    return (
        f"In all: {len(record)} faults, {rounds:,} rounds, {lost} rows lost, {differing} numbers that differ, "
        f"{broken or 'no'} fault{'s' if broken > 1 else ''} after which something did not hold.\n"
    )


def _table(lines: Lines) -> str:
    cells = [["fault", "rounds", "survived", "lost rows", "differing numbers", "worst delay", "ended with"]]
    for line in lines:
        numbers = [f"{line[key]:,}" for key in ("rounds", "survived", "lost_rows", "differing")]
        cells.append([line["name"], *numbers, f"{line['delay']:.1f} s", _ended(line)])
    rows = markdown_lines(cells, left=1).splitlines()
    rows[1] = rows[1].removesuffix("---:|") + "---|"  # words, not a number
    return "\n".join(rows) + "\n"


def _ended(line: dict[str, Any]) -> str:
    told = [f"did not hold: {breach.strip().splitlines()[-1]}" for breach in line["broken"]]
    most = 3
    rest = [f"and {len(line['ended']) - most} more"] if len(line["ended"]) > most else []
    return "; ".join([*told, *line["ended"][:most], *rest])


def _counts(lines: Lines) -> str:
    """What was counted by fault and name, the fewer of them in columns."""
    counts = {line["name"]: line["counts"] for line in lines if line["counts"]}
    if not counts:
        return ""
    names = list(dict.fromkeys(name for of_fault in counts.values() for name in of_fault))
    if len(counts) > 1:
        counts["all"] = {name: sum(of_fault.get(name, 0) for of_fault in counts.values()) for name in names}
    cells = [["", *names], *([title, *(f"{c.get(name, 0):,}" for name in names)] for title, c in counts.items())]
    cells = cells if len(names) <= len(counts) else [list(column) for column in zip(*cells, strict=True)]
    return "How often, by what was met:\n\n" + markdown_lines(cells, left=1) + "\n"


def _figures(lines: Lines) -> str:
    """What was measured, but for samples, which are drawn."""
    cells = [["", "measured", "at most"]]
    for line in lines:
        for name, value in sorted(line["figures"].items()):
            if not SERIES.fullmatch(name):
                cells.append([line["name"], name, f"{value:,.0f}" if value >= 100 else f"{value:.3g}"])
    return "Figures, of all rounds the largest:\n\n" + markdown_lines(cells, left=2) + "\n" if len(cells) > 1 else ""


def series_of(line: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Samples of a fault by what was sampled: (step, value), ascending."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, value in line["figures"].items():
        if match := SERIES.fullmatch(name):
            found.setdefault(match[1], []).append((int(match[2]), value))
    return {name: sorted(points) for name, points in found.items()}


def drawings(record: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each group with samples over steps."""
    for group, lines in by_group(record).items():
        sampled = {line["name"]: series for line in lines if (series := series_of(line))}
        if sampled:
            yield group, _over_steps(sampled)


def _over_steps(sampled: Mapping[str, dict[str, list[tuple[int, float]]]]) -> Figure:
    figure = Figure(figsize=(7.2, 2.5))
    axes = figure.subplots(1, len(PANELS))
    styles = [(COLORS["ste"], "-"), (COLORS["naive"], "--"), (COLORS["jitter"], "-.")]
    for axis, (key, label, unit) in zip(axes, PANELS, strict=True):
        for number, (name, series) in enumerate(sampled.items()):
            if points := series.get(key):
                color, dashes = styles[number % len(styles)]
                axis.plot(
                    *zip(*((x / 1000, y / unit) for x, y in points), strict=True), dashes, color=color, label=name
                )
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set(xlabel="thousand steps", ylabel=label, ylim=(0, 1.25 * max(1, axis.get_ylim()[1])))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    check = parser.parse_args().check
    folder, path = DOCS / "reliability", DOCS / "reliability.md"
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    text = page(record)
    if check:
        missing = [name for name, _ in drawings(record) if not (folder / f"{name}.png").is_file()]
        if missing or not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is stale: run python scripts/reliability_docs.py", file=sys.stderr)
            return 1
        return 0
    with rc_context(STYLE):
        for name, figure in drawings(record):
            figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

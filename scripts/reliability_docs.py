#!/usr/bin/env python3
"""Writes docs/reliability.md from the record of scripts/faults.py.

python scripts/faults.py --json docs/reliability/record.json     run the campaign
python scripts/reliability_docs.py                               write the page
python scripts/reliability_docs.py --check                       exit code 1 if the page is not the record's
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from docs_page import DOCS, parser, publish
from qat_ste.report.writers import markdown_lines

Lines = Sequence[dict[str, Any]]
INTRODUCTION = """\
# Reliability

Made by `scripts/reliability_docs.py` from `docs/reliability/record.json`: change those, not this page.

This is the record of a larger campaign than today's, at commit d01ffb8. Since then the faults of *numbers*, *inputs*,
*readers* and long runs have become tests, and others were dropped: those that had never found anything, and those that
tests repeat. `python scripts/faults.py` runs the rest against the installed command on real data; `--only WORD…`
selects some, `--rounds N` sets how often, `--list` shows the names.

After every fault below:

* rows of metrics up to the last checkpoint are there, once, and every file can be read;
* the same command continues, and its numbers are those of an undisturbed run, bit for bit on a CPU;
* a run that cannot continue ends with one line that says why, without a traceback, and keeps what was there before;
* a value that is not finite stops the run with the step, the member and the tensor, before it is logged or saved.

A fault *survived* where the command ended well, or where the run did when continued. The others *ended with* the line
given, which is an accepted end unless the table says **did not hold**.
"""
GROUPS = {  # in the page's order; other groups of the record follow
    "processes": "Processes are killed, stopped and told to end at random moments, drawn so that each phase is hit. "
    "A kill counts for the phase in which it really fell; *between* is outside of those named.",
    "storage": "Disks that are full or cannot be written, files that are gone, cut off or altered.",
    "two at once": "The same folder, twice at a time.",
    "numbers": "Values that are not finite and tensors that are odd, through `compare` on the digits and through the "
    "command. Results are compared with a slow, plain training of the same network, or with an ordinary one bit for "
    "bit.",
    "surroundings": "Homes, fonts, terminals, networks and clocks that are not what they should be.",
    "inputs": "Wrong values of every key of the configuration and of every argument of `compare`, made from its type "
    "and range: refused before any training in one line that names it, or accepted and meaningful.",
    "readers": "Files by strangers, and files damaged at random: nothing in them is executed.",
    "endurance": "Long runs and long files. After the first 1,000 steps of a run its memory may vary by 24 MiB, in "
    "which change events wait to be compressed, and by 5 kB a row: 0.8 are the row, which a checkpoint restores, the "
    "others are taken while one is written. Open files may be two more meanwhile, threads none. Of a file of rows a "
    "report takes at most 400 MiB, and the highest and lowest value at random places have to be in the figure.\n\n"
    "![Memory, open files and threads over the steps of long runs](reliability/endurance.png)",
}
SAMPLE = re.compile(r"\w+ at \d+")  # a figure that is one of many samples over the steps


def page(record: Mapping[str, dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    names = {line["group"] for line in record.values()}
    parts = [INTRODUCTION, _totals(record)]
    for group in [name for name in GROUPS if name in names] + sorted(names - GROUPS.keys()):
        lines = [line for _, line in sorted(record.items()) if line["group"] == group]
        parts += [f"## {group.capitalize()}\n", GROUPS[group] + "\n" if group in GROUPS else ""]
        parts += [_table(lines), _counts(lines), _figures(lines)]
    return "\n".join(filter(None, parts))


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
    broken = [f"did not hold: {breach.strip().splitlines()[-1]}" for breach in line["broken"]]
    most = 3
    rest = [f"and {len(line['ended']) - most} more"] if len(line["ended"]) > most else []
    return "; ".join([*broken, *line["ended"][:most], *rest])


def _counts(lines: Lines) -> str:
    """Counts by fault and name, the fewer of them in columns."""
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
    """Measured figures, without samples over the steps."""
    cells = [["", "measured", "at most"]]
    for line in lines:
        for name, value in sorted(line.get("figures", {}).items()):
            if not SAMPLE.fullmatch(name):
                cells.append([line["name"], name, f"{value:,.0f}" if value >= 100 else f"{value:.3g}"])
    return "Figures, of all rounds the largest:\n\n" + markdown_lines(cells, left=2) + "\n" if len(cells) > 1 else ""


def main() -> int:
    """Returns the exit code."""
    check = parser(__doc__).parse_args().check
    record = json.loads((DOCS / "reliability" / "record.json").read_text(encoding="utf-8"))
    return publish(DOCS / "reliability.md", page(record), check)


if __name__ == "__main__":
    sys.exit(main())

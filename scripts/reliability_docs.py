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

from docs_page import DOCS, filled, parser, publish
from qat_ste.report.writers import markdown_lines

Lines = Sequence[dict[str, Any]]
SAMPLE = re.compile(r"\w+ at \d+")  # a figure that is one of many samples over the steps


def page(record: Mapping[str, dict[str, Any]]) -> str:
    """The whole page as Markdown: the template's groups that the record has, then other groups."""
    introduction, *sections = filled("reliability", totals=_totals(record)).split("\n## ")
    texts = {title.lower(): text.strip("\n") for title, _, text in (section.partition("\n") for section in sections)}
    names = {line["group"] for line in record.values()}
    parts = [introduction]
    for group in [name for name in texts if name in names] + sorted(names - texts.keys()):
        lines = [line for _, line in sorted(record.items()) if line["group"] == group]
        parts += [f"## {group.capitalize()}\n", f"{texts[group]}\n" if group in texts else ""]
        parts += [_table(lines), _counts(lines), _figures(lines)]
    return "\n".join(filter(None, parts))


def _totals(record: Mapping[str, dict[str, Any]]) -> str:
    rounds, lost, differing = (
        sum(line[key] for line in record.values()) for key in ("rounds", "lost_rows", "differing")
    )
    broken = sum(bool(line["broken"]) for line in record.values())
    return (
        f"In all: {len(record)} faults, {rounds:,} rounds, {lost} rows lost, {differing} numbers that differ, "
        f"{broken or 'no'} fault{'s' if broken > 1 else ''} after which something did not hold."
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
    rest = [f"and {len(line['ended']) - 3} more"] if len(line["ended"]) > 3 else []
    return "; ".join([*broken, *line["ended"][:3], *rest])


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
    check = parser(__doc__).parse_args().check
    record = json.loads((DOCS / "reliability" / "record.json").read_text(encoding="utf-8"))
    return publish(DOCS / "reliability.md", page(record), check)


if __name__ == "__main__":
    sys.exit(main())

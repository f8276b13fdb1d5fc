#!/usr/bin/env python3
"""Write docs/reliability.md from the record of scripts/faults.py.

python scripts/faults.py --json docs/reliability/record.json     run the campaign
python scripts/reliability_docs.py                               write the page
python scripts/reliability_docs.py --check                       exit with 1 if the page is stale
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
SAMPLE = re.compile(r"\w+ at \d+")  # one of many samples over the steps


def page(record: Mapping[str, dict[str, Any]]) -> str:
    """Returns the page as Markdown: groups in the order of the template, then groups that it lacks."""
    introduction, *sections = filled("reliability", totals=_totals(record)).split("\n## ")
    texts = {title.lower(): text.strip("\n") for title, _, text in (section.partition("\n") for section in sections)}
    names = {line["group"] for line in record.values()}
    blocks = [introduction]
    for group in [name for name in texts if name in names] + sorted(names - texts.keys()):
        lines = [line for _, line in sorted(record.items()) if line["group"] == group]
        blocks += [f"## {group.capitalize()}\n", f"{texts[group]}\n" if group in texts else ""]
        blocks += [_table(lines), _counts(lines), _figures(lines)]
    return "\n".join(filter(None, blocks))


def _totals(record: Mapping[str, dict[str, Any]]) -> str:
    rounds, lost, differing = (
        sum(line[key] for line in record.values()) for key in ("rounds", "lost_rows", "differing")
    )
    broken = sum(bool(line["broken"]) for line in record.values())
    return (
        f"In total: {len(record)} faults, {rounds:,} rounds, {lost} lost rows, {differing} differing numbers, "
        f"{broken} fault{'s' * (broken != 1)} after which something did not hold."
    )


def _table(lines: Lines) -> str:
    cells = [["fault", "rounds", "survived", "lost rows", "differing numbers", "worst delay", "ended with"]]
    for line in lines:
        numbers = [f"{line[key]:,}" for key in ("rounds", "survived", "lost_rows", "differing")]
        cells.append([line["name"], *numbers, f"{line['delay']:.1f} s", _ended(line)])
    rows = markdown_lines(cells, left=1).splitlines()
    rows[1] = rows[1].removesuffix("---:|") + "---|"  # text, not a number
    return "\n".join(rows) + "\n"


def _ended(line: dict[str, Any]) -> str:
    broken = [f"did not hold: {breach.strip().splitlines()[-1]}" for breach in line["broken"]]
    rest = [f"and {len(line['ended']) - 3} more"] if len(line["ended"]) > 3 else []
    return "; ".join([*broken, *line["ended"][:3], *rest])


def _counts(lines: Lines) -> str:
    """Table of counts by fault and name; whichever are fewer become the columns."""
    counts = {line["name"]: line["counts"] for line in lines if line["counts"]}
    if not counts:
        return ""
    names = list(dict.fromkeys(name for by_name in counts.values() for name in by_name))
    if len(counts) > 1:
        counts["all"] = {name: sum(by_name.get(name, 0) for by_name in counts.values()) for name in names}
    cells = [["", *names], *([title, *(f"{c.get(name, 0):,}" for name in names)] for title, c in counts.items())]
    cells = cells if len(names) <= len(counts) else [list(column) for column in zip(*cells, strict=True)]
    return "Counts over all rounds:\n\n" + markdown_lines(cells, left=1) + "\n"


def _figures(lines: Lines) -> str:
    """Table of measured figures, without samples over the steps."""
    cells = [["fault", "measured", "largest value"]]
    for line in lines:
        for name, value in sorted(line.get("figures", {}).items()):
            if not SAMPLE.fullmatch(name):
                cells.append([line["name"], name, f"{value:,.0f}" if value >= 100 else f"{value:.3g}"])
    return "Measured over all rounds:\n\n" + markdown_lines(cells, left=2) + "\n" if len(cells) > 1 else ""


def main() -> int:
    check = parser(__doc__).parse_args().check
    record = json.loads((DOCS / "reliability" / "record.json").read_text(encoding="utf-8"))
    return publish(DOCS / "reliability.md", page(record), check)


if __name__ == "__main__":
    sys.exit(main())

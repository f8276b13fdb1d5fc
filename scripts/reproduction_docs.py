#!/usr/bin/env python3
"""Writes docs/reproduction.md from the measured results in docs/results/*.json.

    qat-report outputs/mnist_full --summary docs/results/mnist_full.json
    python scripts/reproduction_docs.py            write the page
    python scripts/reproduction_docs.py --check    exit code 1 if it is not what the results give

Where results differ from the paper's and why stands in docs/results/<name>.md, written by hand, and is taken over.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docs_page import DOCS, parser, publish
from qat_ste.report.sweep.claims import TEST, counted
from qat_ste.report.sweep.paper_table import paper_tables
from qat_ste.report.sweep.summary import read_summary
from qat_ste.report.writers import markdown_claims, markdown_lines, markdown_table, markdown_text

INTRODUCTION = """\
# Reproduction

Made by `scripts/reproduction_docs.py` from the files in `docs/results`: change those, not this page.

What the paper ([arXiv 2405.05171](https://arxiv.org/abs/2405.05171)) says, in words:

1. With SGD and momentum, training with a custom estimator is training with the STE, once the learning rate is rescaled
   by α and the initial weights are re-mapped by M; with Adam, β₂ = 0.95, nothing needs adjusting. The two runs
   (`default`) end about as close as two runs whose learning rates differ by 1 % (`jitter`).
2. With SGD both adjustments are needed: without them (`no-warp`) the runs do not stay close.
3. The agreement improves as the learning rate goes to 0 (`scaledown`: 0.1 η, 3 × the epochs; that mixes smaller steps
   with less training, so `scaledown (matched)` takes 10 × the epochs).
4. It is not peculiar to 2 bits (`1 bit`, `4 bits`).
"""


def page(results: Path) -> str:
    """The whole page as Markdown, from the ``*.json`` files in the folder, by name."""
    parts = [INTRODUCTION, f"{TEST}\n"]
    for path in sorted(results.glob("*.json")):
        parts.append(_section(path))
    return "\n".join(parts)


def _section(path: Path) -> str:
    content, measured, claims = read_summary(path)
    lines = [f"## {markdown_text(path.stem)}", "", counted(claims), ""]
    for setup, order in content["orders"].items():
        lines.append(f"- {markdown_text(setup)}: {markdown_text(order)}")
    lines += ["", "### Claims", "", markdown_claims(claims), ""]
    for table in paper_tables(measured, content.get("metrics", {})):
        lines += [f"### {markdown_text(table.setup)}", "", "Mean ± standard deviation over n seeds.", ""]
        lines += [markdown_table(table), ""]
    lines += ["### On what, how long", "", _conditions(content), "", _machine(content), ""]
    differences = path.with_suffix(".md")
    if differences.is_file():
        lines += ["### Where we differ, and why", "", differences.read_text(encoding="utf-8").strip(), ""]
    return "\n".join(lines)


def _conditions(content: dict[str, Any]) -> str:
    header = ["set-up", "row", "seeds", "steps", "length", "share of the epochs", "time of all seeds", "device"]
    lines = [
        [
            setup,
            row,
            _listed(about["seeds"]),
            _listed(about["steps"]),
            _listed(about["reproduce"]),
            _listed(about["fraction_of_epochs"]),
            f"{about['wall_seconds']:.0f} s",
            _listed(about["devices"]),
        ]
        for setup, rows in content["experiments"].items()
        for row, about in rows.items()
    ]
    return markdown_lines([header, *lines], left=2)


def _machine(content: dict[str, Any]) -> str:
    cores = f" with {_listed(content['cpu_count'])} processors" if content["cpu_count"] else ""
    versions = ", ".join(f"{markdown_text(name)} {_listed(found)}" for name, found in content["versions"].items())
    seconds = content["wall_seconds"]
    return (
        f"{content['runs']} runs, {seconds / 60:.0f} minutes of training in all, on "
        f"{markdown_text(_listed(content['devices']))}{cores}; {versions}."
    )


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or "–"


def main() -> int:
    """Returns the exit code."""
    check = parser(__doc__).parse_args().check
    return publish(DOCS / "reproduction.md", page(DOCS / "results"), check)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Write docs/reproduction.md from the measured results in docs/results/*.json.

    qat-report outputs/mnist_full --summary docs/results/mnist_full.json
    python scripts/reproduction_docs.py            write the page
    python scripts/reproduction_docs.py --check    exit with 1 if the page is stale

docs/results/<name>.md says where the results differ from the paper's, and why. It is written by hand and included.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docs_page import DOCS, filled, parser, publish
from qat_ste.report.sweep.claims import TEST, counted
from qat_ste.report.sweep.paper_table import paper_tables
from qat_ste.report.sweep.summary import read_summary
from qat_ste.report.writers import markdown_claims, markdown_lines, markdown_table, markdown_text


def page(results: Path) -> str:
    """Returns the page as Markdown, with a section per ``*.json`` file in the folder, by name."""
    sections = map(_section, sorted(results.glob("*.json")))
    return filled("reproduction", test=TEST, sections="\n".join(sections))


def _section(path: Path) -> str:
    content, measured, claims = read_summary(path)
    lines = [f"## {markdown_text(path.stem)}", "", counted(claims), ""]
    for setup, order in content["orders"].items():
        lines.append(f"- {markdown_text(setup)}: {markdown_text(order)}")
    lines += ["", "### Claims", "", markdown_claims(claims), ""]
    for table in paper_tables(measured, content.get("metrics", {})):
        lines += [f"### {markdown_text(table.setup)}", "", "Mean ± standard deviation over n seeds.", ""]
        lines += [markdown_table(table), ""]
    lines += ["### Runs and machine", "", _conditions(content), "", _machine(content), ""]
    differences = path.with_suffix(".md")
    if differences.is_file():
        lines += ["### Where we differ, and why", "", differences.read_text(encoding="utf-8").strip(), ""]
    return "\n".join(lines)


def _conditions(content: dict[str, Any]) -> str:
    header = ["set-up", "row", "seeds", "steps", "length", "share of the epochs", "time of all seeds", "device"]
    lines = [header]
    for setup, rows in content["experiments"].items():
        for row, about in rows.items():
            listed = [_listed(about[key]) for key in ("seeds", "steps", "reproduce", "fraction_of_epochs")]
            lines.append([setup, row, *listed, f"{about['wall_seconds']:.0f} s", _listed(about["devices"])])
    return markdown_lines(lines, left=2)


def _machine(content: dict[str, Any]) -> str:
    cores = f" with {_listed(content['cpu_count'])} processors" if content["cpu_count"] else ""
    versions = ", ".join(f"{markdown_text(name)} {_listed(version)}" for name, version in content["versions"].items())
    seconds = content["wall_seconds"]
    return (
        f"{content['runs']} runs, {seconds / 60:.0f} minutes of training in total, on "
        f"{markdown_text(_listed(content['devices']))}{cores}; {versions}."
    )


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or "–"


def main() -> int:
    check = parser(__doc__).parse_args().check
    return publish(DOCS / "reproduction.md", page(DOCS / "results"), check)


if __name__ == "__main__":
    sys.exit(main())

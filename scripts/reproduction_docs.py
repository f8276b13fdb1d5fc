#!/usr/bin/env python3
"""Write docs/reproduction.md and its figures from the measured results in docs/results.

    python scripts/reproduction_docs.py            write the page
    python scripts/reproduction_docs.py --check    exit with 1 if the page is stale

docs/results/<name>/ holds a file for each run that scripts/reproduce.py finished; docs/results/<name>.json is a summary
by qat-report --summary. docs/results/<name>.md says where the results differ from the paper's, and why. It is written
by hand and included.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from docs_page import DOCS, filled, parser, publish
from qat_ste.report.results import read_results
from qat_ste.report.sweep.claims import TEST, Claim, counted
from qat_ste.report.sweep.findings import Findings, find
from qat_ste.report.sweep.gallery import draw_gallery
from qat_ste.report.sweep.groups import ROWS
from qat_ste.report.sweep.paper_table import Measured, paper_tables
from qat_ste.report.sweep.summary import read_summary, write_summary
from qat_ste.report.tables import shown_estimate
from qat_ste.report.writers import markdown_claims, markdown_lines, markdown_table, markdown_text
from run_records import restore

FULL = "_full"  # ends the name of a folder with the whole matrix
SEEDS, ONE_SEED = 3, "scaledown_matched"  # of each row; of this one, a single seed
FIGURES = {
    "alignment_error": "weight alignment error over training, mean of the seeds, bands from the lowest to the highest.",
    "alignment_scatter": "final weights of the reference against those of `ste`, one seed.",
    "curves": "loss and accuracy, one seed.",
}
Figures = dict[str, Callable[[Path], object]]


def page(results: Path) -> tuple[str, Figures]:
    """Returns the page as Markdown, with a section for each set of results, by name, and its figures by file name."""
    sections, figures = [], Figures()
    sets = [*results.glob("*.json"), *(folder for folder in results.iterdir() if folder.is_dir())]
    for path in sorted(sets):
        if path.is_file():
            lines = _section(path, *read_summary(path))
        else:
            with _found(path) as (findings, summary):
                lines = _section(path, *read_summary(summary), findings)
                drawn = _figures(path, findings) if path.name.endswith(FULL) else {}
            figures |= drawn
        sections.append("\n".join(lines))
    return filled("reproduction", test=TEST, sections="\n".join(sections)), figures


@contextmanager
def _found(records: Path) -> Iterator[tuple[Findings, Path]]:
    """What the records of a folder say, and their summary file, both for the time of the block."""
    with tempfile.TemporaryDirectory() as folder:
        for record in sorted(records.glob("*.json")):
            restore(record, Path(folder, record.stem))
        findings, summary = find([Path(folder)]), Path(folder, "summary.json")
        write_summary(findings, summary)
        yield findings, summary


def _section(
    path: Path, content: dict[str, Any], measured: Measured, claims: list[Claim], findings: Findings | None = None
) -> list[str]:
    lines = [f"## {markdown_text(path.stem)}", "", counted(claims), ""]
    for setup, order in content["orders"].items():
        lines.append(f"- {markdown_text(setup)}: {markdown_text(order)}")
    full, segments = path.name.endswith(FULL), _segments(findings)
    lines += ["", *_missing(content)] if full else [""]
    lines += ["### Claims", "", markdown_claims(claims), ""]
    if segments:
        lines += ["### Segments", "", segments, ""]
    if full and findings is not None:
        for name in _figures(path, findings):
            caption = f"{_setup(path, name)}: {FIGURES[_kind(name)]}"
            lines += [f"![{caption}](reproduction/{name})", "", caption, ""]
    for table in paper_tables(measured, content.get("metrics", {})):
        lines += [f"### {markdown_text(table.setup)}", "", "Mean ± standard deviation over n seeds.", ""]
        lines += [markdown_table(table), ""]
    lines += ["### Runs and machine", "", _conditions(content), "", _machine(content), ""]
    differences = path.parent / f"{path.stem}.md"
    if differences.is_file():
        lines += ["### Where we differ, and why", "", differences.read_text(encoding="utf-8").strip(), ""]
    return lines


def _missing(content: dict[str, Any]) -> list[str]:
    """Says which rows have fewer seeds than the matrix."""
    lacking = []
    for setup, rows in content["experiments"].items():
        for row, title in ROWS.items():
            wanted, there = 1 if row == ONE_SEED else SEEDS, len(rows.get(row, {}).get("seeds", ()))
            if there < wanted:
                lacking.append(f"{setup}, {title} ({there} of {wanted})")
    return [f"Not trained yet (seeds that are there): {'; '.join(lacking)}.", ""] if lacking else []


def _segments(findings: Findings | None) -> str:
    """A table of what segments say, run by run; empty without any."""
    header = ["set-up", "row", "seed", "steps of a segment", "ste / jitter", "naive / jitter", "ste's error"]
    lines = [header]
    for group in findings.groups if findings else ():
        for run in group.runs:
            results = read_results(run.folder)
            for length, verdict in results["segment_summary"]["verdicts"].items():
                ste = results["segments"][length]["ste"]["weight_alignment_error"]
                ratios = (verdict["ste_over_jitter"], verdict["naive_over_jitter"], ste)
                about = [group.setup, ROWS.get(group.row, group.row), str(run.seed), str(length)]
                lines.append([*about, *(shown_estimate(each) for each in ratios)])
    return markdown_lines(lines, left=2) if len(lines) > 1 else ""


def _figures(records: Path, findings: Findings) -> Figures:
    names = [f"{setup}_{kind}" for setup in dict.fromkeys(g.setup for g in findings.groups) for kind in FIGURES]
    return {f"{records.name}_{name}.png": partial(_draw, records, name) for name in names}


def _kind(name: str) -> str:
    return next(kind for kind in FIGURES if name.endswith(f"{kind}.png"))


def _setup(records: Path, name: str) -> str:
    return name.removeprefix(f"{records.name}_").removesuffix(f"_{_kind(name)}.png")


def _draw(records: Path, name: str, path: Path) -> None:
    with _found(records) as (findings, summary):
        pictures, failures = draw_gallery(findings.groups, summary.parent / "figures")
    if name in failures:
        raise ValueError(f"{name}: {failures[name]}")
    path.write_bytes(next(picture.png for picture in pictures if picture.name == name))


def _conditions(content: dict[str, Any]) -> str:
    header = ["set-up", "row", "seeds", "steps", "length", "share of the epochs", "time of all seeds", "device"]
    lines = [header]
    for setup, rows in content["experiments"].items():
        for row, about in rows.items():
            listed = [_listed(about[key]) for key in ("seeds", "steps", "reproduce", "fraction_of_epochs")]
            lines.append([setup, row, *listed, _duration(about["wall_seconds"]), _listed(about["devices"])])
    return markdown_lines(lines, left=2)


def _machine(content: dict[str, Any]) -> str:
    cores = f" with {_listed(content['cpu_count'])} processors" if content["cpu_count"] else ""
    versions = ", ".join(f"{markdown_text(name)} {_listed(version)}" for name, version in content["versions"].items())
    return (
        f"{content['runs']} runs, {_duration(content['wall_seconds'])} of training in total, on "
        f"{markdown_text(_listed(content['devices']))}{cores}; {versions}."
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _listed(values: list[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) or "–"


def main() -> int:
    check = parser(__doc__).parse_args().check
    text, figures = page(DOCS / "results")
    return publish(DOCS / "reproduction.md", text, check, figures)


if __name__ == "__main__":
    sys.exit(main())

"""Writes one self-contained page of many runs: claims, the paper's table, figures, and a table of all runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qat_ste.base.files import write
from qat_ste.base.text import one_line
from qat_ste.report.pages import Picture, fill
from qat_ste.report.sweep.claims import ERROR, TEST, counted, orders
from qat_ste.report.sweep.findings import Findings, find
from qat_ste.report.sweep.folders import Run
from qat_ste.report.sweep.gallery import draw_gallery
from qat_ste.report.sweep.groups import Group
from qat_ste.report.sweep.paper_table import PaperTable, blocks, paper_tables
from qat_ste.report.writers import shown_interval, shown_ratio, to_csv, to_latex, to_markdown

COLUMNS = (
    ("run", "text"), ("set-up", "text"), ("row", "text"), ("status", "text"), ("verdict", "text"), ("seed", ""),
    ("ste error", ""), ("jitter error", ""), ("naive error", ""), ("ste / jitter", ""), ("accuracy", ""), ("steps", ""),
    ("seconds", ""),
)  # fmt: skip


@dataclass(frozen=True)
class SweepReport:
    """The page and its findings. ``failures``: reasons of figures that could not be drawn, by name."""

    page: Path
    findings: Findings
    failures: dict[str, str]


def write_sweep_report(folders: Sequence[Path], output: Path) -> SweepReport:
    """Writes ``report.html``, ``tables.md``, ``.tex``, ``.csv`` and ``figures/`` into ``output``.

    Raises:
        NoRunsError: there is no finished run, or there are too many.
    """
    findings = find(folders)
    output.mkdir(parents=True, exist_ok=True)
    tables = paper_tables(findings.measured, findings.added)
    write(output / "tables.md", to_markdown(tables))
    write(output / "tables.tex", to_latex(tables))
    write(output / "tables.csv", to_csv(tables))
    pictures, failures = draw_gallery(findings.groups, output / "figures")
    page = output / "report.html"
    write(page, render(findings, tables, pictures, failures, output))
    return SweepReport(page, findings, failures)


def render(
    findings: Findings,
    tables: Sequence[PaperTable],
    pictures: Sequence[Picture],
    failures: dict[str, str],
    output: Path,
) -> str:
    """Returns the page as HTML for the folder ``output``; every value is escaped."""
    groups, claims, problems = findings.groups, findings.claims, findings.problems
    runs = [(group, run) for group in groups for run in group.runs]
    listed = [_listed(run.folder, output, "done", _cells(group, run)) for group, run in runs]
    empty: list[Any] = [None] * (len(COLUMNS) - 5)
    listed += [_listed(p.folder, output, p.status, ["", "", p.status, "–", *empty]) for p in problems]
    return fill(
        "sweep/page.html",
        runs=runs,
        setups=len(tables),
        headline=counted(claims),
        orders=orders(claims),
        compared={claim.setup: claim for claim in claims if (claim.row, claim.kind) == ("default", "close")},
        claims=claims,
        claims_by_setup=[(setup, list(members)) for setup, members in groupby(claims, lambda claim: claim.setup)],
        test=TEST,
        tables=tables,
        pictures=pictures,
        failures=failures,
        problems=problems,
        columns=COLUMNS,
        listed=listed,
        statuses=list(dict.fromkeys(run["status"] for run in listed)),
        blocks=blocks,
        shown_ratio=shown_ratio,
        shown_interval=shown_interval,
        number=_number,
    )


def _listed(folder: Path, output: Path, status: str, cells: Sequence[Any]) -> dict[str, Any]:
    name = os.path.relpath(folder.absolute(), output.absolute())
    page = folder / "report.html"
    link = f"{quote(os.fsencode(name))}/report.html" if page.is_file() and not page.is_symlink() else None
    return {"name": one_line(name), "link": link, "status": status, "cells": cells}


def _cells(group: Group, run: Run) -> list[Any]:
    ste, jitter, naive = (run.members.get(name, {}).get(ERROR) for name in ("ste", "jitter", "naive"))
    accuracy = run.members["reference"].get("test_accuracy")
    ratio = ste / jitter if ste is not None and jitter else None
    seconds = None if run.wall_seconds is None else round(run.wall_seconds)
    numbers = [run.seed, ste, jitter, naive, ratio, accuracy, run.steps, seconds]
    return [group.setup, group.row, "done", run.verdict, *numbers]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else shown_ratio(value)

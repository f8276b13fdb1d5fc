"""The command ``qat-report``: tables, figures and one page from run folders, without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qat_ste.base.files import home_path

if TYPE_CHECKING:
    from rich.console import Console

    from qat_ste.report.sweep.findings import Findings
    from qat_ste.report.sweep.folders import Problem

MOST_CLAIMS, MOST_PROBLEMS = 40, 20  # printed; the page lists all
PIPED_WIDTH = 160


def main() -> None:
    """Runs ``qat-report``; without a run to report on it prints one line and exits with 2."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.diff and (arguments.folders or arguments.output or arguments.summary):
        parser.error("--diff takes two folders and no other argument")
    if not arguments.diff and not arguments.folders:
        parser.error("name a run folder, or a folder with runs below it")
    from qat_ste.report.sweep.findings import NoRunsError

    try:
        if arguments.diff:
            _diff(*arguments.diff)
        else:
            _report(arguments.folders, arguments.output, arguments.summary)
    except NoRunsError as error:
        _print_problems(error.problems)
        print(f"qat-report: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    except OSError as error:
        from qat_ste.base.text import one_line

        where = f"{error.filename}: " if error.filename else ""
        print(f"qat-report: {one_line(f'{where}{error.strerror or error}')}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qat-report",
        description="Tables, figures and one self-contained page from run folders: means over seeds, and which of the "
        "paper's claims hold. Unfinished and broken folders are reported and skipped.",
    )
    parser.add_argument(
        "folders", nargs="*", type=home_path, metavar="RUN_OR_SWEEP", help="a run folder, or a folder of runs"
    )
    parser.add_argument(
        "--output",
        type=home_path,
        metavar="DIR",
        help="folder for the page, tables and figures (default: the given folder if there is one, else report/)",
    )
    parser.add_argument("--summary", type=home_path, metavar="FILE", help="also write all numbers as a small JSON file")
    parser.add_argument(
        "--diff", nargs=2, type=home_path, metavar=("A", "B"), help="compare two runs or sweeps side by side"
    )
    return parser


def _report(folders: Sequence[Path], output: Path | None, summary: Path | None) -> None:
    from qat_ste.base.text import one_line
    from qat_ste.report.sweep.findings import find
    from qat_ste.report.sweep.folders import find_runs

    folder = folders[0] if len(folders) == 1 and output is None else None
    is_run = folder is not None and next(find_runs(folder), None) == folder
    if folder is not None and is_run:
        from qat_ste.report.run.page import write_report

        findings = find(folders)
        failures = write_report(folder)
        page = folder / "report.html"
    else:
        from qat_ste.report.sweep.page import write_sweep_report

        report = write_sweep_report(folders, output or folder or Path("report"))
        findings, failures, page = report.findings, report.failures, report.page
    if summary is not None:
        from qat_ste.report.sweep.summary import write_summary

        write_summary(findings, summary)
    _print_problems(findings.problems)
    for name, reason in failures.items():
        print(f"qat-report: the figure {name} could not be drawn: {one_line(reason)}", file=sys.stderr)  # noqa: T201
    if not is_run:  # a run's page has its verdict
        _show_claims(findings)
    print(page.resolve())  # noqa: T201


def _show_claims(findings: Findings) -> None:
    from rich.table import Table
    from rich.text import Text

    from qat_ste.base.text import one_line
    from qat_ste.report.sweep.claims import FAILS, HOLDS, counted
    from qat_ste.report.writers import shown_interval, shown_ratio

    console = _console()
    if findings.claims:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("set-up", "ratio of errors", "bound"):
            table.add_column(title, overflow="fold")
        for title in ("measured", "95 % interval", "seeds"):
            table.add_column(title, justify="right")
        table.add_column("claim")
        for claim in findings.claims[:MOST_CLAIMS]:
            style = {HOLDS: "green", FAILS: "bold red"}.get(claim.word, "yellow")
            numbers = shown_ratio(claim.value), shown_interval(claim), str(claim.n)
            cells = [Text(one_line(cell)) for cell in (claim.setup, claim.ratio, claim.bound, *numbers)]
            table.add_row(*cells, Text(claim.word, style=style))
        console.print(table)
        if len(findings.claims) > MOST_CLAIMS:
            console.print(f"… and {len(findings.claims) - MOST_CLAIMS} more on the page")
    console.print(counted(findings.claims), highlight=False)


def _diff(a: Path, b: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from qat_ste.report.sweep.diff import compare_findings
    from qat_ste.report.sweep.findings import find

    sides = [find([path]) for path in (a, b)]
    for findings in sides:
        _print_problems(findings.problems)
    differences = compare_findings(*sides)
    console = _console()
    for difference in differences.both:
        table = Table(title=Text(difference.name, style="bold"), title_justify="left", box=None, pad_edge=False)
        for title in ("", "A", "B"):
            table.add_column(title, justify="left" if not title else "right", overflow="fold")
        for name, in_a, in_b in difference.configuration:
            table.add_row(Text(name), Text(in_a), Text(in_b))
        if not difference.configuration:
            table.add_row(Text("configuration"), Text("the same"), Text("the same"))
        table.add_section()
        for name, in_a, in_b in difference.numbers:
            table.add_row(Text(name), Text(in_a), Text(in_b), style="" if in_a != in_b else "dim")
        console.print(table)
        console.print()
    for side, path, names in (("A", a, differences.only_a), ("B", b, differences.only_b)):
        for name in names:
            console.print(Text(f"only in {side} ({path}): {name}"))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH  # long lines are no problem in a file
    return console


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems[:MOST_PROBLEMS]:
        print(f"qat-report: {problem}", file=sys.stderr)  # noqa: T201
    if len(problems) > MOST_PROBLEMS:
        print(f"qat-report: … and {len(problems) - MOST_PROBLEMS} more folders", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()

"""What a run prints fits the width of the terminal, for any number of counterparts."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.report.tables import shown, table_rows

COUNTERPARTS = ("ste", "naive", "jitter", "mirrored", "ste_once", "replica", "jitter_10", "jitter_0.5", "jitter_2")


@pytest.fixture
def results(finished_run) -> dict:
    return json.loads((finished_run / "results.json").read_text())


def logger_of(is_terminal: bool, width: int) -> TerminalLogger:
    console = Console(file=StringIO(), width=width, force_terminal=is_terminal, color_system=None)
    return TerminalLogger(1500, line_seconds=0.0, console=console)


def printed(logger: TerminalLogger) -> list[str]:
    """The lines printed so far; what was overwritten counts as a line."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "\n", logger.console.file.getvalue()))


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [0, 1, 3, 6, 9])
def test_results_and_progress_fit_the_width(results, is_terminal, width, count):
    logger = logger_of(is_terminal, width)
    names, counterparts = COUNTERPARTS[:count], results["counterparts"]
    results["counterparts"] = {name: counterparts.get(name, counterparts["jitter"]) for name in names}
    errors = {f"{name}/weight_alignment_error": 0.02 for name in names}
    for step in (750, 1500):
        logger.log_row({"step": step, "reference/train_loss": 0.5} | errors)
    logger.log_results(results)
    logger.close(0)
    lines = [line.rstrip() for line in printed(logger)]
    assert max(map(len, lines)) <= width
    headers = [line.split() for line in lines if line.split()[:1] == ["reference"]]
    assert all(header[0] == "reference" for header in headers)
    assert [name for header in headers for name in header[1:]] == list(names)
    for key, title in table_rows(results["metrics"]).items():
        rows = [line.removeprefix(title).split() for line in lines if re.match(rf"{re.escape(title)}  ", line)]
        members = [
            [results["reference"], *(results["counterparts"][name] for name in header[1:])] for header in headers
        ]
        expected = [[shown(member.get(key)) for member in table] for table in members]
        assert all(row in rows for row in expected), "no cell is wrapped or cut"
    assert results["verdict"]["statement"] in " ".join(lines), "wrapped between words"


def test_a_narrow_terminal_shows_one_counterpart_a_table(results):
    logger = logger_of(True, 45)
    logger.log_results(results)
    lines = printed(logger)
    assert [line.split()[1] for line in lines if re.match(r" +reference +\S+ *$", line)] == list(
        results["counterparts"]
    )
    assert max(len(line.rstrip()) for line in lines) <= 45


def test_paths_stay_whole_and_messages_are_one_line_in_a_file():
    path = "/" + "x" * 100
    message = "the loss of the reference is larger than it was; " * 3
    terminal, file = logger_of(True, 80), logger_of(False, 80)
    for logger in (terminal, file):
        logger.say(f"run folder: {path}")
        logger.say(message.strip())
    assert path in [line.strip() for line in printed(terminal)]
    assert max(len(line) for line in printed(terminal) if path not in line) <= 80
    assert printed(file)[:2] == [f"run folder: {path}", message.strip()]


def test_lines_of_progress_without_a_terminal(capsys):
    logger = TerminalLogger(steps=100, line_seconds=0.0, console=Console(force_terminal=False, width=200))
    for step in (10, 20):
        logger.log_row({"step": step, "reference/train_loss": 0.5, "ste/weight_alignment_error": 0.02})
    logger.log_row({"step": 20, "reference/validation_loss": 1.0})
    logger.close(0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] == "step 10/100  loss 0.500  alignment error ste 0.0200"
    assert re.match(r"step 20/100  \d+ steps/s  \d+ s left  loss 0.500  alignment error ste 0.0200", lines[1])

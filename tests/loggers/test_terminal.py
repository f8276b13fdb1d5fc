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


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_errors_of_segments_fit_the_width(segment_run, width, count):
    results = json.loads((segment_run / "results.json").read_text())
    names, wide = COUNTERPARTS[:count], {"weight_alignment_error": 3.2e-5, "low": 1.1e-5, "high": 4.3e-5}
    for members in (results["counterparts"], *results["segments"].values()):
        members |= dict.fromkeys(names[3:], members["ste"] | wide)
    results["counterparts"] = {name: results["counterparts"][name] for name in names}
    logger = logger_of(False, width)
    logger.log_results(results)
    lines = [line.rstrip() for line in printed(logger)]
    assert max(map(len, lines)) <= width
    titles = [row for row, line in enumerate(lines) if line == "alignment error in segments (95 % interval)"]
    assert [name for row in titles for name in lines[row + 1].split()] == list(names)
    for length in ("2", "6"):
        rows = " ".join(line for line in lines[titles[0] :] if line.startswith(f"{length} steps"))
        cells = [name for name in names[:3] if shown_error(results["segments"][length][name]) in rows]
        assert cells == list(names[:3]), "no cell is wrapped or cut"
        assert rows.count("3.2e-05 (1.1e-05 to 4.3e-05)") == len(names[3:])
    statements = [verdict["statement"] for verdict in results["segment_summary"]["verdicts"].values()]
    after = " ".join(" ".join(lines).split())
    places = [after.index(" ".join(text.split())) for text in (*statements, results["verdict"]["statement"])]
    assert len(places) == 3 and places == sorted(places), "the verdict of the whole run comes last"


def shown_error(values: dict) -> str:
    """With two significant digits."""
    numbers = [f"{values[key]:#.2g}" for key in ("weight_alignment_error", "low", "high") if values[key] is not None]
    return numbers[0] if len(numbers) == 1 else "{} ({} to {})".format(*numbers)


def test_runs_without_segments_print_no_table_of_them(results):
    logger = logger_of(False, 80)
    logger.log_results(results)
    assert "segments" not in " ".join(printed(logger))


def test_rows_of_segments_do_not_change_the_progress_line(segment_run):
    with_segments, without = logger_of(False, 200), logger_of(False, 200)
    rows = [json.loads(line) for line in (segment_run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        with_segments.log_row(row)
        if "segment" not in row:
            without.log_row(row)
    texts = [[line.rpartition("loss ")[2] for line in printed(logger) if line] for logger in (with_segments, without)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4 < len(rows)

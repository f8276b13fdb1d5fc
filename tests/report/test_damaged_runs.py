"""Run folders with one file damaged or altered at random: readers do not fail, and pages escape all values."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pytest

from qat_ste.base.run_config import CheckpointMismatch, finished
from qat_ste.report.run.page import render, write_report
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.sweep.findings import NoRunsError, find
from qat_ste.report.sweep.page import render as render_sweep
from qat_ste.report.sweep.page import write_sweep_report
from qat_ste.report.sweep.paper_table import paper_tables
from qat_ste.report.sweep.summary import summary
from qat_ste.report.writers import to_csv, to_latex, to_markdown
from tests.report.matrix import ERRORS, copy_run
from tests.strangers import altered, damaged
from tests.watching import each

DRAWN_EVERY = 400  # one accepted folder in so many gets pages with figures


def read_results(run: Path, config: dict[str, Any], number: int) -> str:
    try:
        finished(run, config)
    except CheckpointMismatch as error:
        check_lines(str(error))
    try:
        findings = find([run])
    except NoRunsError as error:
        check_lines("\n".join(map(str, error.problems)))
        return f"reported: {error.problems[0].status}"
    tables = paper_tables(findings.measured, findings.added)
    pages = [render(RunFiles(run)), render_sweep(findings, tables, [], {}, run)]
    json.dumps(summary(findings))
    for text in (*pages, to_csv(tables), to_latex(tables), to_markdown(tables)):
        assert "<script>alert" not in text or "&lt;script" in text, "a name is not escaped"
        assert "\x1b" not in text, "a name is not escaped"
    if number % DRAWN_EVERY == DRAWN_EVERY - 1:
        write_report(run)
        write_sweep_report([run], run / "report")
        return "drawn"
    return "accepted"


def read_metrics(run: Path, config: dict[str, Any], number: int) -> str:
    rows = len(RunFiles(run).series("ste/weight_alignment_error"))
    return "all rows" if rows == 4 else "some rows" if rows else "no rows"


def read_weights(run: Path, config: dict[str, Any], number: int) -> str:
    try:
        found = [RunFiles(run).weights(f"{member}/final") for member in ("reference", "ste")]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        return f"reported: {type(error).__name__}"
    return "accepted" if len(found[0]) == len(found[1]) else "of different sizes"


def check_lines(text: str) -> None:
    for line in text.splitlines():
        assert line.isprintable() and len(line) <= 1000, f"not one printable line: {line!r:.200}"


READERS: dict[str, Callable[[Path, dict[str, Any], int], str]] = {
    "results.json": read_results,
    "status.json": read_results,
    "metrics.jsonl": read_metrics,
    "weights.npz": read_weights,
}


def contents(file: str, good: bytes, inputs: int, draw: random.Random) -> Iterator[tuple[int, bytes]]:
    """Yields numbered versions of a good file, altered or damaged."""
    for number in range(inputs):
        if file.endswith(".json") and draw.random() < 0.7:
            content = altered(json.loads(good), draw).encode(errors="surrogatepass")
        elif file.endswith(".jsonl") and draw.random() < 0.5:
            rows = good.splitlines()
            row = altered(json.loads(draw.choice(rows)), draw).encode(errors="surrogatepass")
            rows[draw.randrange(len(rows))] = row
            content = b"\n".join(draw.sample(rows, len(rows)) if draw.random() < 0.2 else rows)
        else:
            content = damaged(good, draw)
        yield number, content


def fuzz(finished_run: Path, tmp_path: Path, file: str, inputs: int) -> None:
    run = copy_run(finished_run, tmp_path / "run", 1, None, ERRORS, drawn=True)
    good, config = (run / file).read_bytes(), json.loads((run / "results.json").read_text())["config"]

    def read(given: tuple[int, bytes]) -> str:
        number, content = given
        (run / file).write_bytes(content)
        return READERS[file](run, config, number)

    counts, broken = each(contents(file, good, inputs, random.Random(0)), read, lambda error: False)
    assert broken == []
    assert sum(counts.values()) == inputs


@pytest.mark.parametrize(
    ("file", "inputs"), [("results.json", 60), ("status.json", 20), ("metrics.jsonl", 60), ("weights.npz", 60)]
)
def test_fuzz(finished_run, tmp_path, file, inputs):
    fuzz(finished_run, tmp_path, file, inputs)


def test_fuzz_results_with_segments(segment_run, tmp_path):
    fuzz(segment_run, tmp_path, "results.json", 60)


@pytest.mark.slow
@pytest.mark.parametrize("file", READERS)
def test_fuzz_longer(finished_run, tmp_path, file):
    fuzz(finished_run, tmp_path, file, 300)

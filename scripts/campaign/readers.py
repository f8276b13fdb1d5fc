"""Strangers' formulas and run folders: nothing is executed, nothing hangs, what is wrong is said in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .caches import CACHES
from .checkpoints import STORED
from .fault import Fault, Outcome
from .strangers import altered, damaged, formula
from .watching import CODE, DRAWN, NEVER, each

RUN = ("train.steps=24", "metrics.every=6", "train.steps_per_epoch=8", "logger=none")
PAGES = 100  # of so many accepted folders one is drawn as a whole


@dataclass(frozen=True)
class Expressions:
    """Formulas as text: good ones altered, tokens, random characters, towers of powers, attempts at attributes."""

    name: str = "expression reader"
    group: str = "readers"
    rounds: int = 10
    inputs: int = 10_000

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        from qat_ste.estimators import Formula

        def read(text: str) -> str:
            Formula(text, {"a": 0.5} if "a" in text and draw.random() < 0.5 else None)
            return "accepted"

        def stated(error: Exception) -> bool:
            told = str(error)
            one_line = len(told.splitlines()) == 1 and len(told) < 1000
            return isinstance(error, ValueError) and one_line and told.startswith(("expression", "parameters"))

        for text in ("u", "where(u < w, 1, sin(u))", "1 +"):  # what is imported late
            each(iter([text]), read, stated)
        return each((formula(draw) for _ in range(self.inputs)), read, stated, (*NEVER, *CODE))


@dataclass(frozen=True)
class RunFolders:
    """One file of a good run folder damaged or altered, everything else whole."""

    file: str
    group: str = "readers"
    rounds: int = 10
    inputs: int = 1000

    @property
    def name(self) -> str:
        return f"reader of {self.file}"

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        return read_altered(good_run(workplace), self.file, self.inputs, draw)


def good_run(workplace: Path) -> Path:
    """A short run of the command."""
    command = [sys.executable, "-m", "qat_ste.app.run_cli", *RUN, f"hydra.run.dir={workplace / 'run'}"]
    subprocess.run(command, check=True, capture_output=True, cwd=workplace)
    return workplace / "run"


def read_altered(run: Path, file: str, inputs: int, draw: random.Random) -> Outcome:
    """All readers of a run folder, of which ``file`` is altered again and again."""
    good = (run / file).read_bytes()
    config = json.loads((run / "results.json").read_text())["config"]
    readers: dict[str, Callable[[Path, dict[str, Any], random.Random], str]] = {
        "results.json": _read_results,
        "status.json": _read_results,
        "metrics.jsonl": _read_metrics,
        "weights.npz": _read_weights,
    }

    def contents() -> Iterator[bytes]:
        for _ in range(inputs):
            if file.endswith(".json") and draw.random() < 0.7:
                yield altered(json.loads(good), draw).encode(errors="surrogatepass")
            elif file.endswith(".jsonl") and draw.random() < 0.5:
                rows = good.splitlines()
                rows[draw.randrange(len(rows))] = altered(json.loads(draw.choice(rows)), draw).encode(
                    errors="surrogatepass"
                )
                yield b"\n".join(draw.sample(rows, len(rows)) if draw.random() < 0.2 else rows)
            else:
                yield damaged(good, draw)

    def read(content: bytes) -> str:
        (run / file).write_bytes(content)
        return readers[file](run, config, draw)

    return each(contents(), read, lambda error: False)


def _read_results(run: Path, config: dict[str, Any], draw: random.Random) -> str:
    from qat_ste.base.run_config import CheckpointMismatch, finished
    from qat_ste.report.run.page import render, write_report
    from qat_ste.report.run.run_files import RunFiles
    from qat_ste.report.sweep.findings import Findings, NoRunsError, find
    from qat_ste.report.sweep.page import render as render_sweep
    from qat_ste.report.sweep.page import write_sweep_report
    from qat_ste.report.sweep.paper_table import paper_tables
    from qat_ste.report.sweep.summary import summary
    from qat_ste.report.writers import to_csv, to_latex, to_markdown

    try:
        finished(run, config)
    except CheckpointMismatch as error:
        _check_lines(str(error))
    try:
        findings: Findings = find([run])
    except NoRunsError as error:
        _check_lines("\n".join(map(str, error.problems)))
        return f"told: {error.problems[0].status}"
    tables = paper_tables(findings.measured, findings.added)
    pages = [render(RunFiles(run)), render_sweep(findings, tables, [], {}, run)]
    json.dumps(summary(findings))
    for text in (*pages, to_csv(tables), to_latex(tables), to_markdown(tables)):
        if ("<script>alert" in text and "&lt;script" not in text) or "\x1b" in text:
            raise AssertionError("a name is not escaped")
    if draw.randrange(PAGES) == 0:
        write_report(run)
        write_sweep_report([run], run / "report")
        return DRAWN
    return "accepted"


def _read_metrics(run: Path, config: dict[str, Any], draw: random.Random) -> str:
    from qat_ste.report.run.run_files import RunFiles

    files = RunFiles(run)
    rows = len(files.series("ste/weight_alignment_error"))
    return "all rows" if rows == 4 else "some rows" if rows else "no rows"


def _read_weights(run: Path, config: dict[str, Any], draw: random.Random) -> str:
    from zipfile import BadZipFile

    from qat_ste.report.run.run_files import RunFiles

    try:
        found = [RunFiles(run).weights(f"{member}/final") for member in ("reference", "ste")]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        return f"told: {type(error).__name__}"
    return "accepted" if len(found[0]) == len(found[1]) else "of other sizes"


def _check_lines(text: str) -> None:
    for line in text.splitlines():
        if not line.isprintable() or len(line) > 1000:
            raise AssertionError(f"no line for a terminal: {line!r:.200}")


READERS: tuple[Fault, ...] = (
    *STORED,
    *CACHES,
    Expressions(),
    RunFolders("results.json"),
    RunFolders("status.json"),
    RunFolders("metrics.jsonl"),
    RunFolders("weights.npz"),
)

"""Finds and reads run folders; damaged and foreign files become a ``Problem``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.text import one_line
from qat_ste.report.files import no_link
from qat_ste.report.results import MOST_METRICS, ForeignError, read_results
from qat_ste.report.tables import added, table_rows

MARKS = ("results.json", "status.json", ".hydra")  # a folder with any of them is a run folder
UNFINISHED = ("running", "preempted", "failed")
MOST_RUNS = 10_000
LONGEST_VERDICT = 60


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    config: dict[str, Any]
    choices: dict[str, str]  # option of each config group
    members: dict[str, dict[str, float]]  # numbers of reference and counterparts
    equivalence: str | None
    steps: int | None
    wall_seconds: float | None
    machine: dict[str, Any]  # device, versions, number of processors if known
    rows: dict[str, str]  # titles of the numbers
    verdict: str = "–"  # outcome of this run alone, e.g. "did not matter"

    @property
    def seed(self) -> int | None:
        train = self.config.get("train")
        seed = train.get("seed") if isinstance(train, dict) else None
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Problem:
    """A skipped run folder; ``status``: one of ``UNFINISHED``, "unfinished", "broken" or "repeated"."""

    folder: Path
    status: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(str(self.folder))}: {self.status}: {self.reason}"


class NoRunsError(Exception):
    """There is nothing to report on; one line with the reason and the remedy."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def find_runs(path: Path) -> Iterator[Path]:
    """Yields run folders at or below ``path``, by name; skips links and folders inside run folders."""
    remaining = [path]
    while remaining:
        folder = remaining.pop()
        with suppress(OSError):  # not readable, or the path is too long
            if any((folder / name).exists() or (folder / name).is_symlink() for name in MARKS):
                yield folder
                continue
            with os.scandir(folder) as entries:
                below = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
            remaining += [folder / name for name in sorted(below, reverse=True)]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Reads the run folders at or below these folders, each once; returns finished runs and problems.

    Raises:
        NoRunsError: more than ``MOST_RUNS`` run folders, or more than ``MOST_METRICS`` metrics.
    """
    resolved: dict[Path, Path] = {}
    for top in folders:
        for folder in find_runs(top):
            resolved.setdefault(folder.resolve(), folder)
            if len(resolved) > MOST_RUNS:
                raise NoRunsError(f"{top}: more than {MOST_RUNS:,} run folders; report on fewer of them at a time")
    outcomes = [read_run(folder) for folder in resolved.values()]
    runs = [run for run in outcomes if isinstance(run, Run)]
    problems = [problem for problem in outcomes if isinstance(problem, Problem)]
    if len({name for run in runs for name in added(run.rows)}) > MOST_METRICS:
        raise NoRunsError(f"these runs have more than {MOST_METRICS} metrics; report on fewer of them at a time")
    return runs, problems


def read_run(folder: Path) -> Run | Problem:
    """Reads a finished run; returns a problem if there is none."""
    status: Any = None
    with suppress(OSError, ValueError):  # results.json alone is enough: it is written last
        status = read_json(no_link(folder / "status.json"))
    state = status.get("status") if isinstance(status, dict) else None
    if state in UNFINISHED:
        reason = f"at step {status.get('step')}" + (f": {status['error']}" if status.get("error") else "")
        return Problem(folder, state, one_line(reason, 300))
    try:
        return _run(folder)
    except FileNotFoundError:
        if state == "done":
            return Problem(folder, "broken", "status.json says done, but results.json is missing")
        return Problem(folder, "unfinished", "it has neither results.json nor status.json")
    except json.JSONDecodeError as error:
        return Problem(folder, "broken", _decoding(error))
    except UnicodeDecodeError:
        reason = "results.json is not text"
    except OSError as error:
        reason = error.strerror or str(error)
    except ForeignError as error:
        reason = f"results.json is not qat-run's: {error}"
    except ValueError as error:  # nested too deeply, or a number with thousands of digits
        reason = f"results.json is {error}"
    return Problem(folder, "broken", one_line(reason, 300))


def _decoding(error: json.JSONDecodeError) -> str:
    text = error.doc
    if not text.strip():
        return "results.json is empty"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return f"results.json is truncated: it ends after {len(text)} characters"
    return f"results.json is not JSON: {error.msg} in line {error.lineno}"


def _run(folder: Path) -> Run:
    results = read_results(folder)
    rows = table_rows(results["metrics"])
    members = {"reference": results["reference"], **results["counterparts"]}
    return Run(
        folder,
        results["config"],
        results["choices"],
        {name: {key: float(n) for key in rows if (n := numbers[key]) is not None} for name, numbers in members.items()},
        results["equivalence"],
        None if results["steps"] is None else int(results["steps"]),
        results["wall_seconds"],
        {key: results[key] for key in ("device", "versions", "cpu_count")},
        rows,
        outcome(results["verdict"]),
    )


def outcome(verdict: Mapping[str, Any]) -> str:
    """Returns the outcome of one run; for versions without it, the start of the verdict's statement."""
    start = str(verdict.get("statement") or "").partition(":")[0].removeprefix("The estimator ")
    return one_line(str(verdict.get("outcome") or start or "–"), LONGEST_VERDICT)

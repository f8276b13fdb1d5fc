"""Finds run folders, and reads what is in them whatever it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.text import one_line
from qat_ste.report.files import no_link
from qat_ste.report.results import MOST_METRICS, ForeignError, read_results
from qat_ste.report.tables import added, table_rows

MARKS = ("results.json", "status.json", ".hydra")  # any of them makes a folder a run's
UNFINISHED = ("running", "preempted", "failed")
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Run:
    """What reports need of a finished run. ``members``: numbers of reference and counterparts, titled by ``rows``."""

    folder: Path
    config: dict[str, Any]
    choices: dict[str, str]
    members: dict[str, dict[str, float]]
    equivalence: str | None
    steps: int | None
    wall_seconds: float | None
    machine: dict[str, Any]  # device, versions, and the number of processors where it was noted
    rows: dict[str, str]

    @property
    def seed(self) -> int | None:
        train = self.config.get("train")
        seed = train.get("seed") if isinstance(train, dict) else None
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Problem:
    """A run folder that is not counted: ``UNFINISHED`` or "unfinished", "broken" or "repeated"."""

    folder: Path
    status: str
    reason: str

    def __str__(self) -> str:
        return f"{one_line(str(self.folder))}: {self.status}: {self.reason}"


class NoRunsError(Exception):
    """There is nothing to report on: in one line, what is wrong and what mends it."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def find_runs(path: Path) -> Iterator[Path]:
    """Run folders at or below ``path``, by name. Follows no link, and looks for none within a run folder."""
    left = [path]
    while left:
        folder = left.pop()
        with suppress(OSError):  # a folder that may not be read, or lies too deep, holds nothing for us
            if any((folder / name).exists() or (folder / name).is_symlink() for name in MARKS):
                yield folder
                continue
            with os.scandir(folder) as entries:
                below = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
            left += [folder / name for name in sorted(below, reverse=True)]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Finished runs at or below the folders, each once, and what is wrong with the others.

    Raises:
        NoRunsError: there are more than ``MOST_RUNS``, or they have more than ``MOST_METRICS``.
    """
    real: dict[Path, Path] = {}
    for given in folders:
        for folder in find_runs(given):
            real.setdefault(folder.resolve(), folder)
            if len(real) > MOST_RUNS:
                raise NoRunsError(f"{given}: more than {MOST_RUNS:,} run folders; report on some of them at a time")
    found = [read_run(folder) for folder in real.values()]
    runs = [run for run in found if isinstance(run, Run)]
    problems = [problem for problem in found if isinstance(problem, Problem)]
    if len({name for run in runs for name in added(run.rows)}) > MOST_METRICS:
        raise NoRunsError(f"these runs have more than {MOST_METRICS} metrics; report on some of them at a time")
    return runs, problems


def read_run(folder: Path) -> Run | Problem:
    """A finished run, or why it is none."""
    status: Any = None
    with suppress(OSError, ValueError):  # it may be absent: results.json is written when all is done
        status = read_json(no_link(folder / "status.json"))
    state = status.get("status") if isinstance(status, dict) else None
    if state in UNFINISHED:
        reason = f"at step {status.get('step')}" + (f": {status['error']}" if status.get("error") else "")
        return Problem(folder, state, one_line(reason, 300))
    try:
        return _run(folder)
    except FileNotFoundError:
        if state == "done":
            return Problem(folder, "broken", "status.json says done, but there is no results.json")
        return Problem(folder, "unfinished", "neither results.json nor a status")
    except json.JSONDecodeError as error:
        return Problem(folder, "broken", _decoding(error))
    except UnicodeDecodeError:
        reason = "results.json is no text"
    except OSError as error:
        reason = error.strerror or str(error)
    except ForeignError as error:
        reason = f"results.json is not qat-run's: {error}"
    except ValueError as error:  # nested too deeply, or a number of thousands of digits
        reason = f"results.json is {error}"
    return Problem(folder, "broken", one_line(reason, 300))


def _decoding(error: json.JSONDecodeError) -> str:
    text = error.doc
    if not text.strip():
        return "results.json is empty"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return f"results.json is truncated: it ends after {len(text)} characters"
    return f"results.json is no JSON: {error.msg} in line {error.lineno}"


def _run(folder: Path) -> Run:
    results = read_results(folder)
    rows = table_rows(results["metrics"])
    members = {"reference": results["reference"], **results["counterparts"]}
    return Run(
        folder,
        results["config"],
        results["choices"],
        {name: {key: float(n) for key in rows if (n := of[key]) is not None} for name, of in members.items()},
        results["equivalence"],
        None if results["steps"] is None else int(results["steps"]),
        results["wall_seconds"],
        {key: results[key] for key in ("device", "versions", "cpu_count")},
        rows,
    )

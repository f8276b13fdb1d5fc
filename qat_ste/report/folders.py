"""Finds run folders, and reads what is in them whatever it is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat_ste.report.files import read_text
from qat_ste.report.tables import TABLE_ROWS

METRICS = tuple(key for key, _ in TABLE_ROWS)
MARKS = ("results.json", "status.json", ".hydra")  # any of them makes a folder a run's
UNFINISHED = ("running", "preempted", "failed")
SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """What reports need of a finished run. ``members``: ``METRICS`` of the reference and each counterpart."""

    folder: Path
    config: dict[str, Any]
    choices: dict[str, str]
    members: dict[str, dict[str, float]]
    equivalence: str | None
    steps: int | None
    wall_seconds: float | None
    machine: dict[str, Any]  # device, versions, and the number of processors where it was noted

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


def find_runs(path: Path) -> Iterator[Path]:
    """Run folders at or below ``path``, by name. Follows no link, and looks for none within a run folder."""
    if any((path / name).exists() or (path / name).is_symlink() for name in MARKS):
        yield path
        return
    try:
        with os.scandir(path) as entries:
            below = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False))
    except OSError:  # a folder that may not be read holds nothing for us
        return
    for name in below:
        yield from find_runs(path / name)


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Finished runs at or below the folders, each once, and what is wrong with the others."""
    runs: list[Run] = []
    problems: list[Problem] = []
    seen = set()
    for given in folders:
        for folder in find_runs(given):
            if (real := folder.resolve()) in seen:
                continue
            seen.add(real)
            found = read_run(folder)
            if isinstance(found, Run):
                runs.append(found)
            else:
                problems.append(found)
    return runs, problems


def read_run(folder: Path) -> Run | Problem:
    """A finished run, or why it is none."""
    status: Any = None
    with suppress(OSError, ValueError, RecursionError):  # it may be absent: results.json is written when all is done
        status = json.loads(read_text(folder / "status.json"))
    state = status.get("status") if isinstance(status, dict) else None
    if state in UNFINISHED:
        reason = f"at step {status.get('step')}" + (f": {status['error']}" if status.get("error") else "")
        return Problem(folder, state, one_line(reason)[:300])
    try:
        results = json.loads(read_text(folder / "results.json"))
        return _run(folder, results)
    except FileNotFoundError:
        if state == "done":
            return Problem(folder, "broken", "status.json says done, but there is no results.json")
        return Problem(folder, "unfinished", "neither results.json nor a status")
    except json.JSONDecodeError as error:
        return Problem(folder, "broken", _decoding(error))
    except UnicodeDecodeError:
        reason = "results.json is no text"
    except RecursionError:
        reason = "results.json is nested too deeply"
    except OSError as error:
        reason = error.strerror or str(error)
    except _ForeignError as error:
        reason = f"results.json is not qat-run's: {error}"
    return Problem(folder, "broken", one_line(reason)[:300])


def one_line(text: str) -> str:
    """The text without line breaks and what else would steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


class _ForeignError(Exception):
    pass


def _decoding(error: json.JSONDecodeError) -> str:
    text = error.doc
    if not text.strip():
        return "results.json is empty"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return f"results.json is truncated: it ends after {len(text)} characters"
    return f"results.json is no JSON: {error.msg} in line {error.lineno}"


def _run(folder: Path, results: Any) -> Run:
    if not isinstance(results, dict):
        raise _ForeignError(f"{type(results).__name__} in place of an object")
    sections: dict[str, Any] = {key: results.get(key) for key in ("config", "reference", "counterparts")}
    missing = [key for key, value in sections.items() if not isinstance(value, dict) or not value]
    if missing:
        raise _ForeignError("no " + ", ".join(missing))
    if results.get("schema", SCHEMA) != SCHEMA:
        raise _ForeignError(f"schema {results['schema']} where {SCHEMA} is known")
    members = {"reference": sections["reference"], **sections["counterparts"]}
    choices = results.get("choices")
    versions = results.get("versions")
    return Run(
        folder,
        sections["config"],
        {key: value for key, value in choices.items() if isinstance(value, str)} if isinstance(choices, dict) else {},
        {name: _numbers(name, numbers) for name, numbers in members.items()},
        results["equivalence"] if isinstance(results.get("equivalence"), str) else None,
        None if (steps := _number("steps", results.get("steps"))) is None else int(steps),
        _number("wall_seconds", results.get("wall_seconds")),
        {
            "device": str(results.get("device")),
            "versions": {key: str(value) for key, value in versions.items()} if isinstance(versions, dict) else {},
            "cpu_count": _number("cpu_count", results.get("cpu_count")),
        },
    )


def _numbers(member: str, values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        raise _ForeignError(f"{member} is {type(values).__name__} in place of an object")
    numbers = {key: _number(f"{member}.{key}", values.get(key)) for key in METRICS}
    return {key: number for key, number in numbers.items() if number is not None}


def _number(key: str, value: Any) -> float | None:
    """The number, None where it is absent or not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _ForeignError(f"{key} is {type(value).__name__} in place of a number")
    return float(value) if abs(value) < math.inf and abs(value) < 1e300 else None

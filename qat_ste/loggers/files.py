"""The run folder: the source of truth, of which every other logger is a view."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat_ste.loggers import Row


class RunFolder:
    """``metrics.jsonl``, ``results.json`` and ``status.json`` of one run.

    Args:
        done: rows of a run that is continued; what was logged after them will be again.
    """

    def __init__(self, folder: Path, done: Sequence[Row] = ()) -> None:
        self.folder = folder
        self._started = self._told = time.monotonic()
        self.step = done[-1]["step"] if done else 0
        path = folder / "metrics.jsonl"
        if done:
            self._started -= _wall_seconds(folder / "status.json")
            _write(path, "".join(_line(row) for row in done))
        elif path.exists():  # of a run that was cut off before its first checkpoint: kept aside
            path.replace(folder / "metrics.previous.jsonl")
        self._metrics = path.open("a", buffering=1, encoding="utf-8")
        self.set_status("running")

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self._started

    def log_row(self, row: Row) -> None:
        """Appends one flushed row; tells ``status.json`` the step now and then."""
        self._metrics.write(_line(row))
        self.step = row["step"]
        if time.monotonic() - self._told > 1:
            self.set_status("running")

    def log_results(self, results: dict[str, Any]) -> None:
        write_json(self.folder / "results.json", results)

    def close(self, exit_code: int) -> None:
        self._metrics.close()

    def set_status(self, status: str, error: str | None = None) -> None:
        """``status``: running, done, failed or preempted."""
        self._told = time.monotonic()
        content = {"status": status, "step": self.step, "wall_seconds": self.wall_seconds, "error": error}
        write_json(self.folder / "status.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes to a temporary name first, so that a reader never finds half a file."""
    _write(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _line(row: Row) -> str:
    return json.dumps(_plain(row), allow_nan=False) + "\n"


def _wall_seconds(status: Path) -> float:
    """What an earlier part of the run took; 0 where its status cannot be read."""
    try:
        return float(json.loads(status.read_text(encoding="utf-8"))["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""The run folder: the source of truth, of which every other logger is a view."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from qat_ste.loggers import Row


class RunFolder:
    """``metrics.jsonl``, ``results.json`` and ``status.json`` of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = self._told = time.monotonic()
        self.step = 0
        rows = folder / "metrics.jsonl"
        if rows.exists():  # of a run that was cut off here: kept aside
            rows.replace(folder / "metrics.previous.jsonl")
        self._metrics = rows.open("w", buffering=1, encoding="utf-8")
        self.set_status("running")

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self._started

    def log_row(self, row: Row) -> None:
        """Appends one flushed row; tells ``status.json`` the step now and then."""
        self._metrics.write(json.dumps(_plain(row), allow_nan=False) + "\n")
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
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

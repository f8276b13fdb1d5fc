"""The run folder: the source of truth, of which every other logger is a view."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qat_ste.base.files import json_text, read_json, write, write_json
from qat_ste.loggers import Row

log = logging.getLogger(__name__)


class RunFolder:
    """``metrics.jsonl``, ``results.json`` and ``status.json`` of one run.

    Rows that cannot be written, for want of room say, are held back and tried again with each row that follows.

    Args:
        done: rows of a run that is continued; what was logged after them will be again.

    Raises:
        OSError: the folder cannot be written to, here or by any method but ``log_row``.
    """

    def __init__(self, folder: Path, done: Sequence[Row] = ()) -> None:
        self.folder = folder
        self._started = self._told = time.monotonic()
        self.step = done[-1]["step"] if done else 0
        path = folder / "metrics.jsonl"
        if done:
            self._started -= _wall_seconds(folder / "status.json")
            write(path, "".join(_line(row) for row in done), durable=True)
        elif path.exists():  # of a run that was cut off before its first checkpoint: kept aside
            path.replace(folder / "metrics.previous.jsonl")
        self._metrics = path.open("ab", buffering=0)
        self._held: list[str] = []
        self._warned = False
        self.set_status("running")

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self._started

    def log_row(self, row: Row) -> None:
        """Appends one flushed row; tells ``status.json`` the step now and then.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        self._held.append(_line(row))
        self.step = row["step"]
        try:
            self._append()
            if time.monotonic() - self._told > 1:
                self.set_status("running")
        except OSError as error:
            if not self.folder.exists():
                raise FileNotFoundError(f"the run folder {self.folder} is gone") from None
            if not self._warned:
                log.warning("%s: %s; tried again with each row", self.folder, error.strerror)
            self._warned = True

    def log_results(self, results: dict[str, Any]) -> None:
        write_json(self.folder / "results.json", results, durable=True)
        self._append()

    def close(self, exit_code: int) -> None:
        self._metrics.close()

    def set_last_status(self, status: str, error: str) -> None:
        """Of a run that did not get to its end, for which the folder may be a reason: that it fails is only told."""
        try:
            self.set_status(status, error)
        except OSError as fault:
            log.warning("%s cannot be told that the run is %s: %s", self.folder, status, fault.strerror)

    def set_status(self, status: str, error: str | None = None) -> None:
        """``status``: running, done, failed or preempted."""
        self._told = time.monotonic()  # once a second, even where it fails
        content = {"status": status, "step": self.step, "wall_seconds": self.wall_seconds, "error": error}
        write_json(self.folder / "status.json", content)

    def _append(self) -> None:
        """All rows or, where that fails, none: half a row would spoil the next one."""
        content = memoryview("".join(self._held).encode())
        size = self._metrics.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[self._metrics.write(content) :]
        except OSError:
            with suppress(OSError):
                self._metrics.truncate(size)
            raise
        self._held.clear()


def _line(row: Row) -> str:
    return json_text(row) + "\n"


def _wall_seconds(status: Path) -> float:
    """What an earlier part of the run took; 0 where its status cannot be read."""
    try:
        return float(read_json(status)["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0

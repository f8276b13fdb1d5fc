"""Files of the run folder: the complete record of a run."""

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
    """Writes ``metrics.jsonl``, ``results.json`` and ``status.json`` of one run.

    Rows that cannot be written, because the disk is full for example, are kept and written with a later row.

    Args:
        done: rows up to the checkpoint of a resumed run; later rows in ``metrics.jsonl`` are removed.

    Raises:
        OSError: the folder is not writable; every method but ``log_row`` and ``set_last_status`` raises it too.
    """

    def __init__(self, folder: Path, done: Sequence[Row] = ()) -> None:
        self.folder = folder
        self._started = self._status_time = time.monotonic()
        self.step = done[-1]["step"] if done else 0
        path = folder / "metrics.jsonl"
        if done:
            self._started -= _wall_seconds(folder / "status.json")
            write(path, "".join(_line(row) for row in done), durable=True)
        elif path.exists():  # from a run that was interrupted before its first checkpoint
            path.replace(folder / "metrics.previous.jsonl")
        self._metrics = path.open("ab", buffering=0)
        self._pending: list[str] = []
        self._warned = False
        self.set_status("running")

    @property
    def wall_seconds(self) -> float:
        """Seconds since the start, earlier parts of a resumed run included."""
        return time.monotonic() - self._started

    def log_row(self, row: Row) -> None:
        """Appends a row and flushes it; updates ``status.json`` once a second.

        Raises:
            FileNotFoundError: the folder was removed.
        """
        self._pending.append(_line(row))
        self.step = row["step"]
        try:
            self._append()
            if time.monotonic() - self._status_time > 1:
                self.set_status("running")
        except OSError as error:
            if not self.folder.exists():
                raise FileNotFoundError(f"the run folder {self.folder} was removed") from None
            if not self._warned:
                log.warning("%s: %s; rows will be written again with the next row", self.folder, error.strerror)
            self._warned = True

    def log_results(self, results: dict[str, Any]) -> None:
        """Writes ``results.json``, then any pending rows."""
        write_json(self.folder / "results.json", results, durable=True)
        self._append()

    def close(self, exit_code: int) -> None:
        self._metrics.close()

    def set_last_status(self, status: str, error: str) -> None:
        """Sets the status of a run that ended early; warns if it cannot be written, which may be why the run ended."""
        try:
            self.set_status(status, error)
        except OSError as fault:
            log.warning("%s: status %s cannot be written: %s", self.folder, status, fault.strerror)

    def set_status(self, status: str, error: str | None = None) -> None:
        """Writes ``status.json``.

        Args:
            status: running, done, failed or preempted.
        """
        self._status_time = time.monotonic()  # also after a failed write, so that it is tried once a second
        content = {"status": status, "step": self.step, "wall_seconds": self.wall_seconds, "error": error}
        write_json(self.folder / "status.json", content)

    def _append(self) -> None:
        """Writes all pending rows or, on an error, none: half a row would corrupt the next one."""
        content = memoryview("".join(self._pending).encode())
        size = self._metrics.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[self._metrics.write(content) :]
        except OSError:
            with suppress(OSError):
                self._metrics.truncate(size)
            raise
        self._pending.clear()


def _line(row: Row) -> str:
    return json_text(row) + "\n"


def _wall_seconds(status: Path) -> float:
    """Seconds that the run took before it was interrupted; 0 if its status cannot be read."""
    try:
        return float(read_json(status)["wall_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0

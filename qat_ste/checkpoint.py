"""Checkpoints of a run: whole or not there, the last few, only for the configuration that they were made with."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from qat_ste.identity import CheckpointMismatch, differences
from qat_ste.messages import one_line

log = logging.getLogger(__name__)


class Checkpoints:
    """Reads and writes ``checkpoint.pt`` in ``folder``; ``checkpoint.1.pt`` and so on are the ones before.

    Args:
        config: what a checkpoint has to agree with to be continued; nested, of plain values.
        every_steps, every_seconds: when one is due; None: never for this reason.
        keep: how many files stay.

    Raises:
        CheckpointMismatch: the newest readable checkpoint has another ``config``.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        every_steps: int | None = None,
        every_seconds: float | None = 600,
        keep: int = 2,
    ) -> None:
        self.paths = [folder / ("checkpoint.pt" if not age else f"checkpoint.{age}.pt") for age in range(keep)]
        self.config = json.loads(json.dumps(config))
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self._saved_at = time.monotonic()
        self._failed = False
        self._state = self._load()

    def take(self) -> dict[str, Any] | None:
        """The state to go on from, once; None where there is none."""
        state, self._state = self._state, None
        return state

    @property
    def step(self) -> int:
        """Steps done in the state to go on from; 0 where there is none."""
        return self._state["step"] if self._state else 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows logged in the state to go on from."""
        return json.loads(self._state["record"])["rows"] if self._state else []

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or (self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds)

    def save(self, state: dict[str, Any] | None) -> None:
        """Writes a checkpoint beside the last, then takes its place. What fails costs one warning, not the run.

        None where another rank writes it.
        """
        self._saved_at = time.monotonic()
        if state is None:
            return
        newest = self.paths[0]
        temporary = newest.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state | {"config": json.dumps(self.config), "config_hash": _hash(self.config)}, file)
                file.flush()
                os.fsync(file.fileno())
            for younger, older in reversed(list(zip(self.paths, self.paths[1:], strict=False))):
                if younger.exists():  # linked, not moved: at no moment is there no checkpoint
                    older.with_suffix(".tmp").unlink(missing_ok=True)
                    os.link(younger, older.with_suffix(".tmp"))
                    older.with_suffix(".tmp").replace(older)
            temporary.replace(newest)
            self._failed = False
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError of its own on top of the system's
            fault = error.__context__ or error
            reason = fault.strerror if isinstance(fault, OSError) else "torch could not write it"
            level = logging.INFO if self._failed else logging.WARNING  # of a full disk each one fails
            log.log(level, "no checkpoint at step %s: %s; the one before stays", state["step"], reason)
            self._failed = True
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _load(self) -> dict[str, Any] | None:
        for path in self.paths:
            if not path.exists():
                continue
            try:
                state = _read(path)
                saved = json.loads(state["config"])
            except Exception as error:  # whatever a damaged file leads to
                reason = one_line((str(error) or type(error).__name__).splitlines()[0], 200)
                log.warning("%s cannot be read (%s): looking for an older one", path, reason)
                continue
            if found := differences(saved, self.config):
                raise CheckpointMismatch(path, found)
            return state
        return None


def _read(path: Path) -> dict[str, Any]:
    """What is in the file, without executing any of it.

    Raises:
        Exception: of whatever kind; it is no whole checkpoint.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as file:
        names, sizes = file.namelist(), [info.file_size for info in file.infolist()]
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        if not stored or len({*names}) < len(names) or sum(sizes) > path.stat().st_size:
            raise ValueError("its parts are not as torch writes them")
        if file.testzip() is not None:  # torch itself does not look at checksums
            raise ValueError("its checksum is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    step, rows = state["step"], json.loads(state["record"])["rows"]
    if type(step) is not int or not all(type(row["step"]) is int and 0 < row["step"] <= step for row in rows):
        raise ValueError("it does not say after which step it was made")
    return state


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

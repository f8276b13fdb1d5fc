"""Which configurations make the same run, and whether a folder holds it, finished. Imports no torch."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.sections import SECTIONS
from qat_ste.base.text import one_line

# Keys that may change when a run is resumed: paths, logging, speed.
FREE_TO_CHANGE = (
    "dry_run",
    "paths",
    "logger",
    "checkpoint",
    "runtime.line_seconds",
    "dataset.root",
    "dataset.cache",
    "dataset.workers",
)
MOST_DIFFERENCES, LONGEST = 20, 200  # number shown, and characters of a value
Config = Mapping[str, Any]


class CheckpointMismatch(ValueError):
    """A folder holds a run of another configuration.

    Attributes:
        path: the file that says so.
        differences: (key, value there, value now).
    """

    def __init__(self, path: Path, differences: list[tuple[str, Any, Any]]) -> None:
        self.path, self.differences = path, differences
        super().__init__("\n".join(self.lines()))

    def lines(self, folder: str = "folder") -> list[str]:
        """One line for each of the first differences; ``folder`` is what the user calls the folder."""
        shown = [[one_line(str(value), LONGEST) for value in each] for each in self.differences[:MOST_DIFFERENCES]]
        return [
            f"{key}={now}: {self.path} was made with {key}={saved}; use that value, or choose another {folder}"
            for key, saved, now in shown
        ]


def identity(config: Config, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of a resolved configuration that determines the numbers of a run, less the keys in ``leave_out``."""
    kept = completed(config)
    for key in FREE_TO_CHANGE + leave_out:
        section, _, name = key.partition(".")
        if not name:
            kept.pop(section, None)
        elif isinstance(kept.get(section), dict):
            kept[section].pop(name, None)
    return kept


def digest(config: Config) -> str:
    """SHA-256 of a configuration of plain values, in hexadecimal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def completed(config: Config) -> dict[str, Any]:
    """A copy with the default of each missing key, in the sections that are there.

    Older versions lack newer keys. The default of a new key is what was done before, so this makes no other run.
    """
    full = copy.deepcopy(dict(config))
    for section, kind in SECTIONS.items():
        if isinstance(full.get(section), dict):
            full[section] = {**kind.defaults(), **full[section]}
    return full


def differences(saved: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(key, saved value, value now) wherever two nested configurations differ."""
    if isinstance(saved, dict) and isinstance(now, dict):
        names = [*saved, *(name for name in now if name not in saved)]
        return [d for name in names for d in differences(saved.get(name), now.get(name), f"{key}.{name}".lstrip("."))]
    return [] if saved == now else [(key, saved, now)]


def finished(folder: Path, config: Config) -> bool:
    """Whether the folder holds the finished run of this resolved configuration.

    Raises:
        CheckpointMismatch: it holds a finished run of another configuration.
    """
    try:
        if read_json(folder / "status.json")["status"] != "done":
            return False
        saved = identity(read_json(folder / "results.json")["config"])
        mismatches = differences(saved, identity(config))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # the files may hold anything
        return False
    if mismatches:
        raise CheckpointMismatch(folder / "results.json", mismatches)
    return True

"""Which configurations make the same run, and whether a folder holds it, done. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.text import one_line

# What may be different when a run is continued: where things lie, what is told, and how fast it goes.
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
# Keys that runs of earlier versions lack, each with the value that does what was done before it was there. A new key
# needs its line here: without it every older run would be another one.
ADDED: dict[str, Any] = {
    "quantizer.levels": None,
    "train.accumulate": 1,
    "train.length_scale": 1.0,
    "train.lr_scale": 1.0,
    "train.share": 1.0,
    "train.clip_norm": None,
    "train.clip_at": "latent",
    "train.weight_decay": 0.0,
    "runtime.devices": 1,
    "runtime.placement": "together",
    "runtime.precision": "fp32",
    "runtime.tf32": False,
    "runtime.execution": "auto",
    "runtime.sync_batchnorm": False,
}
MOST_DIFFERENCES, LONGEST = 20, 200  # that are told, and characters of a value


class CheckpointMismatch(ValueError):
    """A checkpoint is there, but of another configuration; a line for each of (key, saved value, value now)."""

    def __init__(self, path: Path, differences: list[tuple[str, Any, Any]]) -> None:
        lines = [
            f"{key}={now}: {path} was made with {key}={saved}; go on with that, or choose another hydra.run.dir"
            for key, saved, now in (_short(difference) for difference in differences[:MOST_DIFFERENCES])
        ]
        super().__init__("\n".join(lines))


def identity(config: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The part of a resolved configuration on which the numbers of a run depend, less the keys in ``leave_out``."""
    kept = completed(config)
    for key in FREE_TO_CHANGE + leave_out:
        section, _, name = key.partition(".")
        if not name:
            kept.pop(section, None)
        elif isinstance(kept.get(section), dict):
            kept[section].pop(name, None)
    return kept


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that has every key of ``ADDED`` in the sections that it has."""
    found = copy.deepcopy(dict(config))
    for key, value in ADDED.items():
        section, _, name = key.partition(".")
        if isinstance(found.get(section), dict):
            found[section].setdefault(name, value)
    return found


def without_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the keys of ``ADDED`` that change nothing: by it a file keeps the name that older versions gave.

    ``quantizer.levels`` stays: it is older than any file named so.
    """
    found = copy.deepcopy(dict(config))
    for key, value in ADDED.items():
        section, _, name = key.partition(".")
        if key != "quantizer.levels" and found.get(section, {}).get(name, ...) == value:
            del found[section][name]
    return found


def differences(saved: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value saved, value now) wherever two nested configurations differ."""
    if isinstance(saved, dict) and isinstance(now, dict):
        names = [*saved, *(name for name in now if name not in saved)]
        return [d for name in names for d in differences(saved.get(name), now.get(name), f"{key}.{name}".lstrip("."))]
    return [] if saved == now else [(key, saved, now)]


def finished(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the folder holds the run of this resolved configuration, done.

    Raises:
        CheckpointMismatch: it holds a finished run of another configuration.
    """
    try:
        if read_json(folder / "status.json")["status"] != "done":
            return False
        found = differences(identity(read_json(folder / "results.json")["config"]), identity(config))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # whatever may be in files of these names
        return False
    if found:
        raise CheckpointMismatch(folder / "results.json", found)
    return True


def _short(values: tuple[Any, ...]) -> list[str]:
    return [one_line(str(value), LONGEST) for value in values]

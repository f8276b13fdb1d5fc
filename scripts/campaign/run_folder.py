"""Checks of a run folder after a fault, and of the processes that a command has started."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

OF_THE_MACHINE = ("wall_seconds", "versions", "command", "config")


def differing(folder: Path, reference: Path) -> int:
    """Counts numbers of ``results.json`` and rows of ``metrics.jsonl`` that differ from the reference, bit for bit."""
    ours, theirs = (_flat(json.loads((path / "results.json").read_text())) for path in (folder, reference))
    rows, expected = ((path / "metrics.jsonl").read_text().splitlines() for path in (folder, reference))
    differing_rows = sum(a != b for a, b in zip(rows, expected, strict=False)) + abs(len(rows) - len(expected))
    return differing_rows + sum(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys())


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    items = [(f"{key}.{name}".lstrip("."), item) for name, item in value.items()]
    return {k: v for name, item in items if name not in OF_THE_MACHINE for k, v in _flat(item, name).items()}


def unreadable(folder: Path) -> list[str]:
    """Returns a line for each file of a run folder that cannot be read."""
    problems = []
    for path in sorted(folder.glob("*")):
        try:
            _read(path)
        except Exception as error:
            problems.append(f"{path.name} cannot be read: {type(error).__name__}: {error}")
    return problems


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".pt":
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
        assert torch.load(path, weights_only=True)["step"] > 0
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)
    elif path.name == "report.html":
        assert path.read_text().rstrip().endswith("</html>")


def lost_rows(folder: Path, reference: Path) -> tuple[int, list[str]]:
    """Counts missing rows before the newest checkpoint; also returns problems of the existing rows."""
    path, checkpoint = folder / "metrics.jsonl", folder / "checkpoint.pt"
    expected = (reference / "metrics.jsonl").read_text().splitlines()
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last line may be incomplete
    step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
    due = sum(json.loads(line)["step"] <= step for line in expected)
    broken = [] if lines == expected[: len(lines)] else ["rows differ from those of the undisturbed run"]
    return max(0, due - len(lines)), broken


def run_of_seed(sweep: Path, seed: int) -> Path:
    """Returns the run folder with this seed in a sweep."""
    for path in sweep.glob("*/results.json"):
        if json.loads(path.read_text())["config"]["train"]["seed"] == seed:
            return path.parent
    raise FileNotFoundError(f"no finished run with seed {seed} in {sweep}")


def left_behind(workplace: Path, seconds: float) -> list[str]:
    """Returns a line for each process started in ``workplace`` that is alive after ``seconds``; kills them."""
    deadline = time.monotonic() + seconds
    while (alive := list(processes(workplace))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number, _ in alive:
        os.kill(number, 9)
    return [f"still alive after {seconds:.0f} s: {name}" for _, name in alive]


def processes(workplace: Path) -> Iterator[tuple[int, str]]:
    """Yields id and command line of each process that descends from a command started in ``workplace``."""
    marker = f"QAT_ROUND={workplace}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:  # it has ended
            continue

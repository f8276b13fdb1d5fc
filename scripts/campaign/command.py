"""The installed command, disturbed and undisturbed, and what has to hold of a run folder whatever happened."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

RUN = (
    "train.steps=120",
    "train.steps_per_epoch=10",
    "metrics.every=7",
    "checkpoint.every_steps=5",
    "runtime.threads=1",
)
AGENT = Path(__file__).with_name("agent")
SECONDS = 180  # within which every command has to end
OF_THE_MACHINE = ("wall_seconds", "versions", "command", "config")


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``seconds`` from its start."""

    code: int
    out: str
    err: str
    seconds: float

    def faults(self) -> list[str]:
        """What nobody wants to see on a terminal."""
        text = self.out + self.err
        lines = [line for line in self.err.splitlines() if line.strip()]
        found = ["a traceback: " + text.strip().splitlines()[-1]] if "Traceback" in text else []
        if self.code == -9:
            found.append(f"did not end in {SECONDS} s")
        elif self.code > 0 and not lines and self.code < 128:
            found.append(f"exit code {self.code} without a word")
        return found + ([f"{len(lines)} lines: {lines[0]}"] if len(lines) > 5 else [])

    @property
    def line(self) -> str:
        """Its last word, without the paths and numbers that differ by the run; "survived" if it did."""
        if self.code == 0:
            return "survived"
        lines = [line for line in self.err.splitlines() if line.strip()] or [f"exit code {self.code}"]
        return re.sub(r"\b(process|step) \d+ (on \S+)?", r"\1 N ", re.sub(r"/[^\s:;,]+", "PATH", lines[-1]))[:150]


def start(
    *arguments: str,
    program: str = "qat-run",
    orders: dict[str, Any] | None = None,
    environment: Mapping[str, str | None] | None = None,
    prefix: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen[str]:
    """Starts the installed command.

    Args:
        orders: for the agent within the command; see there.
        environment: what differs from this process's; None takes away.
        prefix: a command line that runs another one.
    """
    env: dict[str, str] = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    env |= {"OMP_NUM_THREADS": "1", "QAT_ROUND": str(options.get("cwd", ""))}
    if orders is not None:
        env |= {"QAT_FAULT": json.dumps(orders), "PYTHONPATH": os.pathsep.join([str(AGENT), env.get("PYTHONPATH", "")])}
    for key, value in (environment or {}).items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    command = [*prefix, sys.executable, str(Path(sys.executable).with_name(program)), *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | options
    return subprocess.Popen(command, env=env, text=True, errors="replace", **options)


def end(process: subprocess.Popen[str], began: float) -> Ended:
    """Waits for it."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
    return Ended(process.returncode, out or "", err or "", time.monotonic() - began)


def run(*arguments: str, **options: Any) -> Ended:
    """Starts it and waits for it."""
    began = time.monotonic()
    return end(start(*arguments, **options), began)


def undisturbed(*arguments: str, **options: Any) -> Path:
    """A finished run of these arguments, made once a campaign.

    Raises:
        RuntimeError: the command failed.
    """
    root = Path(os.environ["QAT_FAULTS"])
    name = hashlib.sha256(repr((arguments, sorted(options.items()))).encode()).hexdigest()[:16]
    folder = root / name
    with (root / f"{name}.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if not (folder / "results.json").exists():
            done = run(*arguments, f"hydra.run.dir={folder}", orders={"log": str(root / f"{name}.phases")}, **options)
            if done.code:
                raise RuntimeError(done.err)
    return folder


@dataclass(frozen=True)
class Phase:
    """When a phase of an undisturbed run began, seconds from the start of the command, and how long it took."""

    begin: float
    seconds: float


def phases(folder: Path) -> dict[str, list[Phase]]:
    """Phases of an undisturbed run by name."""
    events = [line.split(" ", 2) for line in folder.with_suffix(".phases").read_text().splitlines()]
    zero, last = float(events[0][0]), float(events[-1][0])
    begun: dict[str, list[float]] = {}
    found: dict[str, list[Phase]] = {}
    for moment, what, phase in events:
        if what == "begin":
            begun.setdefault(phase, []).append(float(moment) - zero)
        else:
            begin = begun[phase].pop()
            found.setdefault(phase, []).append(Phase(begin, float(moment) - zero - begin))
    found["start"] = [Phase(0.0, found["data"][0].begin)]
    found["all"] = [Phase(0.0, last - zero)]
    return found


def differing(folder: Path, reference: Path) -> int:
    """Numbers of ``results.json`` and rows of ``metrics.jsonl`` that are not those of the reference, bit for bit."""
    ours, theirs = (_flat(json.loads((path / "results.json").read_text())) for path in (folder, reference))
    rows, expected = ((path / "metrics.jsonl").read_text().splitlines() for path in (folder, reference))
    of_rows = sum(a != b for a, b in zip(rows, expected, strict=False)) + abs(len(rows) - len(expected))
    return of_rows + sum(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys())


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    items = [(f"{key}.{name}".lstrip("."), item) for name, item in value.items()]
    return {k: v for name, item in items if name not in OF_THE_MACHINE for k, v in _flat(item, name).items()}


def unreadable(folder: Path) -> list[str]:
    """Files of a run folder that are there but cannot be read."""
    found = []
    for path in sorted(folder.glob("*")):
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.name} cannot be read: {type(error).__name__}: {error}")
    return found


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
    """Rows before the newest checkpoint that are gone, and what else is wrong with those that are there."""
    path, checkpoint = folder / "metrics.jsonl", folder / "checkpoint.pt"
    expected = (reference / "metrics.jsonl").read_text().splitlines()
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last one may have been cut off
    step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
    due = sum(json.loads(line)["step"] <= step for line in expected)
    broken = [] if lines == expected[: len(lines)] else ["rows differ from those of the undisturbed run"]
    return max(0, due - len(lines)), broken


def left_behind(workplace: Path, seconds: float = 15.0) -> list[str]:
    """Processes of commands started there that are still there after so many seconds; they are killed."""
    deadline = time.monotonic() + seconds
    while (found := list(processes(workplace))) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number, _ in found:
        os.kill(number, 9)
    return [f"still there after {seconds:.0f} s: {name}" for _, name in found]


def processes(workplace: Path) -> Iterator[tuple[int, str]]:
    """Number and command line of each process that comes from a command started there."""
    marker = f"QAT_ROUND={workplace}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes():
                yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:  # ended meanwhile
            continue


@contextmanager
def small_disk(workplace: Path, kilobytes: int) -> Iterator[Path]:
    """A file system in memory of that size. Needs root.

    Raises:
        CalledProcessError: it cannot be mounted.
    """
    disk = workplace / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def remount(disk: Path, option: str) -> None:
    """Another size, or ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=False, capture_output=True)

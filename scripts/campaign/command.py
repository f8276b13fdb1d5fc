"""Start the installed command with a fault; make undisturbed runs and read the times of their phases."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LENGTH = ("train.steps=120", "train.steps_per_epoch=10")
RUN = (*LENGTH, "metrics.every=7", "checkpoint.every_steps=5", "runtime.threads=1")
AGENT = Path(__file__).with_name("agent")
SECONDS = 180  # time limit of every command


class Unsupported(Exception):
    """This machine lacks what a fault needs."""


@dataclass(frozen=True)
class Ended:
    """The end of a command. ``late``: it was killed after ``SECONDS``."""

    code: int
    out: str
    err: str
    late: bool

    def faults(self) -> list[str]:
        """Returns what must not happen: a time-out, a traceback, silence after a failure, or many lines of errors."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        faults = [f"did not end in {SECONDS} s"] if self.late else []
        if "Traceback" in self.out + self.err:
            faults.append("a traceback: " + (self.out + self.err).strip().splitlines()[-1])
        if 0 < self.code < 128 and not lines:
            faults.append(f"exit code {self.code} without a message")
        return faults + ([f"{len(lines)} lines: {lines[0]}"] if len(lines) > 5 else [])

    @property
    def line(self) -> str:
        """The last line without paths and numbers that differ between runs; "survived" after exit code 0."""
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
        orders: what the agent inside the command does (see ``agent/sitecustomize.py``).
        environment: changes to this process's variables; None removes a variable.
        prefix: command line that runs the command as its argument.
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


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a command to end; kills it after ``SECONDS``."""
    try:
        out, err = process.communicate(timeout=SECONDS)
        late = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        late = True
    return Ended(process.returncode, out or "", err or "", late)


def until(process: subprocess.Popen[str], condition: Callable[[], Any]) -> Any:
    """Waits until the condition is true or the process has ended; returns the condition's value."""
    while not (value := condition()) and process.poll() is None:
        time.sleep(0.01)
    return value


def undisturbed(*arguments: str) -> Path:
    """Returns the folder of a finished run of these arguments, made once per campaign.

    Raises:
        RuntimeError: the command failed.
    """
    root = Path(os.environ["QAT_FAULTS"])
    folder = root / hashlib.sha256(repr(arguments).encode()).hexdigest()[:16]
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if not (folder / "results.json").exists():
            done = end(start(*arguments, f"hydra.run.dir={folder}", orders={"log": f"{folder}.phases"}))
            if done.code:
                raise RuntimeError(done.err)
    return folder


class Phase(NamedTuple):
    """Begin of a phase, in seconds since the start of the command, and its duration in seconds."""

    begin: float
    seconds: float


def phases(folder: Path) -> dict[str, list[Phase]]:
    """Returns the phases of an undisturbed run by name; ``all`` is the whole run."""
    events = [line.split(" ", 2) for line in folder.with_suffix(".phases").read_text().splitlines()]
    zero, last = float(events[0][0]), float(events[-1][0])
    begun: dict[str, list[float]] = {}
    by_name: dict[str, list[Phase]] = {"all": [Phase(0.0, last - zero)]}
    for moment, what, phase in events:
        if what == "begin":
            begun.setdefault(phase, []).append(float(moment) - zero)
        else:
            begin = begun[phase].pop()
            by_name.setdefault(phase, []).append(Phase(begin, float(moment) - zero - begin))
    return by_name | {"start": [Phase(0.0, by_name["data"][0].begin)]}

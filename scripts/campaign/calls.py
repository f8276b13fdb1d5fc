"""``qat-run`` called in this process or as one of its own, with no more time and memory than a wrong value may take."""

from __future__ import annotations

import io
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

SLOWEST = 60  # seconds on the clock to do anything at all
ROOM = 6 << 30  # bytes that a wrong value may have the command ask for


@dataclass(frozen=True)
class Done:
    """What the command came to; ``steps``: of training, taken in this process."""

    code: int
    out: str
    err: str
    seconds: float
    steps: int = 0


class Hung(BaseException):
    """A call took longer than ``SLOWEST`` seconds."""


@contextmanager
def bounded() -> Iterator[None]:
    """No more time and memory than a wrong value may take."""

    def hung(_: int, frame: FrameType | None) -> None:
        raise Hung("".join(traceback.format_stack(frame, 4)))

    before, (soft, hard) = signal.signal(signal.SIGALRM, hung), resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    signal.alarm(SLOWEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def command(*arguments: str) -> Done:
    """``qat-run`` in this process, which has torch already; whatever it raises ends up in ``err`` as a traceback."""
    from hydra.core.global_hydra import GlobalHydra

    from qat_ste.app import run_cli as cli
    from qat_ste.experiment.lockstep import Lockstep

    GlobalHydra.instance().clear()
    code, out, err, start = 0, io.StringIO(), io.StringIO(), time.perf_counter()
    steps, step = [], Lockstep.step

    def counted(*given: Any) -> Any:
        steps.append(given[1])
        return step(*given)

    given = patch.object(sys, "argv", ["qat-run", *arguments])
    with given, patch.object(Lockstep, "step", counted), bounded(), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except (Exception, Hung):
            code = 1
            traceback.print_exc()
    return Done(code, out.getvalue(), err.getvalue(), time.perf_counter() - start, len(steps))


def ended(program: str, *arguments: str) -> tuple[Done, float]:
    """The same as a process of its own, from the folder that this one is in; with its seconds on the clock."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=SLOWEST)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, out, err = 1, "", f"Traceback: none, but no end after {SLOWEST} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(code, out, err, seconds), time.perf_counter() - start

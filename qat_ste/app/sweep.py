"""A sweep and its jobs: each outcome is a file in its run folder, all of them a table at the end."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qat_ste.app.job import Job, locked_or_leave, tell_fault
from qat_ste.base.files import read_json, write_json
from qat_ste.base.text import of_error

MARKS = {"done": "green", "skipped": "dim", "failed": "bold red", "preempted": "yellow", "running": "yellow"}
WATCH_SECONDS, LINE_SECONDS = 2.0, 60.0


def folder_name(overrides: str) -> str:
    """Overrides as part of a folder's name: nothing that a shell or a file system minds, and not too long."""
    name = re.sub(r"[^\w.,=+-]+", "-", overrides).strip("-")
    if len(name) > 120:  # W&B takes no more than 128
        name = f"{name[:110].rstrip('-,')}-{sha256(name.encode()).hexdigest()[:8]}"
    return name or "default"


def sweep_name(arguments: list[str]) -> str:
    """The same name for the same command, so that a sweep which is started again finds what is done."""
    leave_out = ("-", "hydra", "paths.", "dry_run=", "checkpoint.", "runtime.line_seconds=", "dataset.cache=")
    return folder_name(",".join(argument for argument in arguments if not argument.startswith(leave_out)))


@dataclass(frozen=True)
class Outcome:
    """Of one job: its folder's name, what it came to, and why."""

    name: str
    outcome: str
    reason: str | None
    step: int
    wall_seconds: float


class Sweep(Callback):
    """Hydra calls it where a sweep begins; ``current`` is the one of this process, if any."""

    current: Sweep | None = None
    _lock = ExitStack()  # of the class: Hydra sends instances to the processes of jobs

    def __init__(self) -> None:
        self.folder, self.since, self.faults, self.stopped = Path(), 0, 0, False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Notes where and when, by the clock of the disk that the jobs write to.

        Raises:
            SystemExit: a sweep is running there. Hydra makes warnings of other exceptions here.
        """
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not config.dry_run:
            self._lock.enter_context(locked_or_leave(self.folder, "hydra.sweep.dir"))
            (self.folder / STOP).unlink(missing_ok=True)
        mark = self.folder / "multirun.yaml"  # which the sweeper is about to write
        mark.touch()
        self.since = mark.stat().st_mtime_ns
        Sweep.current = self
        if shares_terminal(config.hydra.launcher) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._stop)
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            threading.Thread(target=self._watch, daemon=True).start()

    def outcomes(self) -> list[Outcome]:
        """What came of each job that has been started, by name."""
        files = [path for path in self.folder.glob(f"*/{FILE}") if path.stat().st_mtime_ns >= self.since]
        return [_outcome(path) for path in sorted(files)]

    def end(self, dry_run: bool) -> int:
        """Tells what came of it; returns the exit code."""
        Sweep.current = None
        if signal.getsignal(signal.SIGINT) == self._stop:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            (self.folder / STOP).unlink(missing_ok=True)
        self._lock.close()
        if dry_run:
            if [path.name for path in self.folder.iterdir()] == ["multirun.yaml"]:
                (self.folder / "multirun.yaml").unlink()
                self.folder.rmdir()
            return 2 if self.faults else 0
        left = self.tell()
        return 128 + signal.SIGINT if self.stopped else 1 if left else 0

    def tell(self) -> int:
        """Prints the table; returns how many jobs are not done."""
        outcomes, console = self.outcomes(), Console()
        if not console.is_terminal:
            console.width = 250
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("run", "outcome", "step", "time", "reason"):
            table.add_column(title, justify="right" if title in ("step", "time") else "left", overflow="fold")
        for job in outcomes:
            reason = "was done already" if job.outcome == "skipped" else " ".join((job.reason or "").split())
            shown = Text("cut off" if job.outcome == "running" else job.outcome, MARKS[job.outcome])
            table.add_row(Text(job.name), shown, f"{job.step}", f"{job.wall_seconds:.0f} s", Text(reason))
        console.print(table)
        counts = Counter("cut off" if job.outcome == "running" else job.outcome for job in outcomes)
        told = ", ".join(f"{number} {name}" for name, number in counts.items())
        console.print(f"{told or 'no job was started'}: {self.folder}", highlight=False, soft_wrap=True)
        return len(outcomes) - counts["done"] - counts["skipped"]

    def _watch(self) -> None:
        """A line whenever a job begins or ends, and each minute; the jobs themselves are elsewhere."""
        counts, told_at = Counter[str](), time.monotonic()
        while True:
            time.sleep(WATCH_SECONDS)
            if Sweep.current is not self:
                return
            outcomes = self.outcomes()
            found = Counter(job.outcome for job in outcomes)
            if found == counts and time.monotonic() - told_at < LINE_SECONDS:
                continue
            counts, told_at = found, time.monotonic()
            steps = ", ".join(str(job.step) for job in outcomes if job.outcome == "running")
            text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in MARKS if counts[outcome])
            print(f"{text} (at step {steps})" if steps else text, flush=True)  # noqa: T201

    def _stop(self, *_: Any) -> None:
        """Of Ctrl-C: the first has the runs end with a checkpoint, the second leaves them to it."""
        if self.stopped:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.stopped = True
        (self.folder / STOP).touch()
        print("stopping: each run leaves a checkpoint", flush=True)  # noqa: T201


def _outcome(path: Path) -> Outcome:
    try:
        found = read_json(path)
        status = path.parent / "status.json"
        run = read_json(status) if status.exists() else {}
        reason = found["reason"] or (run.get("error") if found["outcome"] == "failed" else None)
        return Outcome(
            path.parent.name, found["outcome"], reason, int(run.get("step", 0)), float(run.get("wall_seconds", 0))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Outcome(path.parent.name, "failed", f"its files cannot be read ({error})", 0, 0.0)


log = logging.getLogger(__name__)
FILE = "job.json"
STOP = ".stop"  # in the sweep's folder: no further job is to begin, and those that run are to end with a checkpoint


def run_of_sweep(job: Job, launcher: DictConfig, in_launching_process: bool) -> None:
    """Runs the job and notes what came of it: running, done, skipped, failed or preempted.

    Raises:
        SystemExit: a signal asked the launching process, which this is, to stop.
    """
    if in_launching_process:
        exit_code = _run(job)
    else:
        if shares_terminal(launcher):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is for the launching process to heed
        _heed(job.folder.parent / STOP, os.getppid())
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # run.log has it all
            exit_code = _run(job)
    if exit_code > 128 and in_launching_process:
        raise SystemExit(exit_code)
    if exit_code > 128 and callable(signal.getsignal(exit_code - 128)):
        signal.raise_signal(exit_code - 128)  # its handler may want to queue the job again


def shares_terminal(launcher: DictConfig) -> bool:
    """Whether a Ctrl-C reaches the processes of jobs too, joblib's."""
    return "joblib" in launcher._target_


def _run(job: Job) -> int:
    stop = job.folder.parent / STOP
    if stop.exists():
        _note(job.folder, "preempted", "Ctrl-C before it began")
        return 128 + signal.SIGTERM
    _note(job.folder, "running")
    try:
        skipped = job.finished()
        exit_code = 0 if skipped else job.run()
    except Exception as error:
        exit_code = tell_fault(error, job.folder)
        _note(job.folder, "failed", str(error) if exit_code == 2 else of_error(error))
    else:
        if exit_code > 128:
            _note(job.folder, "preempted", "Ctrl-C" if stop.exists() else signal.Signals(exit_code - 128).name)
        else:
            _note(job.folder, "skipped" if skipped else "failed" if exit_code else "done")
    return exit_code


def _note(folder: Path, outcome: str, reason: str | None = None) -> None:
    content = {"outcome": outcome, "reason": reason, "host": os.uname().nodename, "pid": os.getpid()}
    try:
        write_json(folder / FILE, content)
    except OSError as error:  # costs a line of the table, not the jobs after this one
        log.warning("%s: %s", folder / FILE, error.strerror)


@cache
def _heed(stop: Path, parent: int) -> None:
    """From now on stops what runs here, as a signal would, when there is a file ``stop`` or no parent any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
            if stop.exists() and callable(signal.getsignal(signal.SIGTERM)):  # else there is no run to end
                os.kill(os.getpid(), signal.SIGTERM)
        while True:  # a job may have been waiting for its turn
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    threading.Thread(target=watch, daemon=True).start()

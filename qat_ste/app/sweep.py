"""Sweeps: runs the jobs, writes each one's outcome to its run folder and prints a table of them at the end."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qat_ste.app.job import Job, locked_or_leave, quoted, tell_fault
from qat_ste.base.files import home_path, read_json, write_json
from qat_ste.base.text import of_error

log = logging.getLogger(__name__)
FILE = "job.json"
STOP = ".stop"  # in the sweep's folder: no further job starts, and running jobs stop with a checkpoint
STYLES = {"done": "green", "skipped": "dim", "failed": "bold red", "preempted": "yellow", "running": "yellow"}
WATCH_SECONDS, LINE_SECONDS = 2.0, 60.0


def folder_name(overrides: str, distinct: bool = False) -> str:
    """Makes a folder name of overrides: without special characters, and of limited length.

    Args:
        distinct: whether overrides that differ in special characters alone get different names, by a hash.
    """
    name = re.sub(r"[^\w.,=+-]+", "-", overrides).strip("-")
    hashed = overrides if distinct else name
    if name != hashed or len(name) > 120:  # W&B allows 128
        name = f"{name[:110].rstrip('-,')}-{sha256(os.fsencode(hashed)).hexdigest()[:8]}"
    return name or "default"


def job_folder_name(overrides: str, sweep: str, left_out: Sequence[str]) -> str:
    """The name of a job's folder: the one that an older version gave it if that folder is there, else a distinct name.

    Args:
        overrides: of the job, sorted and joined by commas.
        sweep: folder of the sweep.
        left_out: keys that are not in ``overrides``.
    """
    name = folder_name(overrides)
    with suppress(Exception):  # there is no such folder, or its files may hold anything
        made_with = _overrides(Path(sweep, name))
        kept = [override for override in made_with if re.split("[=@]", override.lstrip("+~"))[0] not in left_out]
        if ",".join(sorted(kept)) == overrides:
            return name
    return folder_name(overrides, distinct=True)


def _overrides(folder: Path) -> list[str]:
    """The overrides of the run in a folder; those of Hydra's file may belong to a later job that was rejected."""
    with suppress(FileNotFoundError):
        return shlex.split(read_json(folder / "results.json")["command"])[1:]
    overrides: Any = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
    return list(overrides)


def sweep_name(arguments: list[str]) -> str:
    """Makes a sweep's folder name of its command, so that the same command finds the runs that are done."""
    ignored = ("-", "hydra", "paths.", "dry_run=", "checkpoint.", "runtime.line_seconds=", "dataset.cache=")
    return folder_name(",".join(argument for argument in arguments if not argument.startswith(ignored)))


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job (running, done, skipped, failed or preempted); ``name`` is that of its folder."""

    name: str
    outcome: str
    reason: str | None
    step: int
    wall_seconds: float


class Sweep(Callback):
    """Callback that Hydra calls when a sweep starts; ``current`` is the sweep of this process, if any."""

    current: Sweep | None = None
    _lock = ExitStack()  # a class attribute, since Hydra pickles the instance

    def __init__(self) -> None:
        self.folder, self.since, self.faults, self.stopped = Path(), 0, 0, False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Locks the folder and records the time of the start, by the clock of the disk that the jobs write to.

        Raises:
            SystemExit: another sweep is running there. Hydra turns other exceptions into warnings.
        """
        folder = str(home_path(config.hydra.sweep.dir))
        if folder != config.hydra.sweep.dir:
            with read_write(config.hydra):
                config.hydra.sweep.dir = folder
                config.hydra.overrides.hydra.append(quoted("hydra.sweep.dir", folder))  # for the jobs
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not config.dry_run:
            self._lock.enter_context(locked_or_leave(self.folder, "hydra.sweep.dir"))
            (self.folder / STOP).unlink(missing_ok=True)
        file = self.folder / "multirun.yaml"  # the sweeper writes it next
        file.touch()
        self.since = file.stat().st_mtime_ns
        Sweep.current = self
        if shares_terminal(config.hydra.launcher) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._stop)
        if config.hydra.runtime.choices["hydra/launcher"] != "basic":
            threading.Thread(target=self._watch, daemon=True).start()

    def outcomes(self) -> list[Outcome]:
        """The outcome of each job that was started, sorted by name."""
        files = [path for path in self.folder.glob(f"*/{FILE}") if path.stat().st_mtime_ns >= self.since]
        return [_outcome(path) for path in sorted(files)]

    def end(self, dry_run: bool) -> int:
        """Ends the sweep and prints the table; returns the exit code."""
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
        unfinished = self.print_table()
        return 128 + signal.SIGINT if self.stopped else 1 if unfinished else 0

    def print_table(self) -> int:
        """Prints the outcome of each job, with its verdict or the reason; returns how many are not done."""
        outcomes, console = self.outcomes(), Console()
        if not console.is_terminal:
            console.width = 250
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("run", "outcome", "step", "time", "verdict or reason"):
            table.add_column(title, justify="right" if title in ("step", "time") else "left", overflow="fold")
        counts = Counter[str]()
        for job in outcomes:
            label = "interrupted" if job.outcome == "running" else job.outcome
            counts[label] += 1
            finished = job.outcome in ("done", "skipped")
            text = _verdict(self.folder / job.name) if finished else " ".join((job.reason or "").split())
            style = STYLES[job.outcome]
            table.add_row(Text(job.name), Text(label, style), f"{job.step}", f"{job.wall_seconds:.0f} s", Text(text))
        console.print(table)
        summary = ", ".join(f"{number} {label}" for label, number in counts.items()) or "no job was started"
        console.print(f"{summary}: {self.folder}", highlight=False, soft_wrap=True)
        return len(outcomes) - counts["done"] - counts["skipped"]

    def _watch(self) -> None:
        """Prints a line whenever a job starts or ends, and once a minute; the jobs run in other processes."""
        printed, printed_at = Counter[str](), time.monotonic()
        while True:
            time.sleep(WATCH_SECONDS)
            if Sweep.current is not self:
                return
            outcomes = self.outcomes()
            counts = Counter(job.outcome for job in outcomes)
            if counts == printed and time.monotonic() - printed_at < LINE_SECONDS:
                continue
            printed, printed_at = counts, time.monotonic()
            steps = ", ".join(str(job.step) for job in outcomes if job.outcome == "running")
            text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in STYLES if counts[outcome])
            print(f"{text} (at step {steps})" if steps else text, flush=True)  # noqa: T201

    def _stop(self, *_: Any) -> None:
        """Handles Ctrl-C: the first stops the runs with a checkpoint, the second ends this process at once."""
        if self.stopped:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self.stopped = True
        (self.folder / STOP).touch()
        print("stopping: each run saves a checkpoint", flush=True)  # noqa: T201


def _outcome(path: Path) -> Outcome:
    try:
        job = read_json(path)
        status = path.parent / "status.json"
        run = read_json(status) if status.exists() else {}
        reason = job["reason"] or (run.get("error") if job["outcome"] == "failed" else None)
        return Outcome(
            path.parent.name, job["outcome"], reason, int(run.get("step", 0)), float(run.get("wall_seconds", 0))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Outcome(path.parent.name, "failed", f"its files cannot be read ({error})", 0, 0.0)


def _verdict(folder: Path) -> str:
    """The outcome of a run's verdict; "–" for runs of older versions, which did not store it."""
    try:
        return str(read_json(folder / "results.json")["verdict"]["outcome"])
    except (OSError, ValueError, KeyError, TypeError):
        return "–"


def run_of_sweep(job: Job, launcher: DictConfig, in_launching_process: bool) -> None:
    """Runs a job and writes its outcome to its folder.

    Args:
        in_launching_process: whether the job runs in the process of the sweep.

    Raises:
        SystemExit: a signal stopped the launching process.
    """
    os.environ.pop("WANDB_RUN_ID", None)  # one id for all jobs would make them one run of W&B
    if in_launching_process:
        exit_code = _run(job)
    else:
        if shares_terminal(launcher):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launching process handles it
        _watch_stop(job.folder.parent / STOP, os.getppid())
        with Path(os.devnull).open("w") as null, redirect_stdout(null):  # run.log has the output
            exit_code = _run(job)
    if exit_code > 128 and in_launching_process:
        raise SystemExit(exit_code)
    if exit_code > 128 and callable(signal.getsignal(exit_code - 128)):
        signal.raise_signal(exit_code - 128)  # its handler may requeue the job


def shares_terminal(launcher: DictConfig) -> bool:
    """Whether Ctrl-C reaches the processes of the jobs too, as with joblib."""
    return "joblib" in launcher._target_


def _run(job: Job) -> int:
    stop = job.folder.parent / STOP
    if stop.exists():
        _note(job.folder, "preempted", "Ctrl-C before it started")
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
    except OSError as error:  # the table lacks the job, but the sweep continues
        log.warning("%s: %s", folder / FILE, error.strerror)


@cache
def _watch_stop(stop: Path, parent: int) -> None:
    """Sends this process SIGTERM, from a thread, when the file ``stop`` appears or the process ``parent`` ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
            if stop.exists() and callable(signal.getsignal(signal.SIGTERM)):  # otherwise no run is in progress
                os.kill(os.getpid(), signal.SIGTERM)
        while True:  # repeated, since another job may start after the first signal
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    threading.Thread(target=watch, daemon=True).start()

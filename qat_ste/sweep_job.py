"""One job of a sweep: what it comes to is noted in its run folder, and nothing but a signal stops the jobs after it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from qat_ste.job import Job, tell_fault
from qat_ste.loggers.files import write_json
from qat_ste.messages import of_error

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

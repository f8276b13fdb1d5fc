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

from qat_ste.job import Job, one_line, tell_fault
from qat_ste.loggers.files import write_json

log = logging.getLogger(__name__)
FILE = "job.json"


def run_of_sweep(job: Job, in_launching_process: bool) -> None:
    """Runs the job and notes what came of it: running, done, skipped, failed or preempted.

    Raises:
        SystemExit: a signal asked the launching process, which this is, to stop.
    """
    if in_launching_process:
        exit_code = _run(job)
    else:
        _end_with_parent()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # run.log has it all
            exit_code = _run(job)
    if exit_code > 128 and in_launching_process:
        raise SystemExit(exit_code)
    if exit_code > 128 and callable(signal.getsignal(exit_code - 128)):
        signal.raise_signal(exit_code - 128)  # its handler may want to queue the job again


def _run(job: Job) -> int:
    _note(job.folder, "running")
    try:
        skipped = job.finished()
        exit_code = 0 if skipped else job.run()
    except Exception as error:
        exit_code = tell_fault(error, job.folder)
        _note(job.folder, "failed", str(error) if exit_code == 2 else one_line(error))
    else:
        outcome = "skipped" if skipped else "done" if not exit_code else "preempted" if exit_code > 128 else "failed"
        _note(job.folder, outcome, signal.Signals(exit_code - 128).name if exit_code > 128 else None)
    return exit_code


def _note(folder: Path, outcome: str, reason: str | None = None) -> None:
    content = {"outcome": outcome, "reason": reason, "host": os.uname().nodename, "pid": os.getpid()}
    try:
        write_json(folder / FILE, content)
    except OSError as error:  # costs a line of the table, not the jobs after this one
        log.warning("%s: %s", folder / FILE, error.strerror)


@cache
def _end_with_parent() -> None:
    """From now on stops this process as a signal would, with a checkpoint, when the one that started it is gone."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        while True:  # a job may have been waiting for its turn
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    threading.Thread(target=watch, args=[os.getppid()], daemon=True).start()

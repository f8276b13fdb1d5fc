"""What the commands share that train cells in a folder: arguments, lock, signals, progress, the message at the end."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

from omegaconf import OmegaConf

from qat_ste.app.compose import (
    COMPOSE_ERRORS,
    add_modules_beside,
    compose_file,
    composition_problems,
    config_dir,
    search_path,
)
from qat_ste.app.help_text import WIDTH, commented
from qat_ste.app.job import refuse
from qat_ste.app.schema import ConfigError
from qat_ste.base.errors import ArgumentError
from qat_ste.base.files import FolderInUse, home_path, locked
from qat_ste.base.text import of_error

if TYPE_CHECKING:
    from qat_ste.app.cell_jobs import J

T = TypeVar("T")


def parsed(
    program: str, section: str, description: str, examples: str, problem_of: Callable[[str], str | None]
) -> tuple[list[str], bool]:
    """The overrides of the command line, and whether it has --dry-run.

    Args:
        section: of the configuration that the help shows, and name of the YAML file.
        problem_of: why an override is not accepted; None if it is.
    """
    epilog = ""
    if {"-h", "--help"} & set(sys.argv):
        epilog = examples + commented(OmegaConf.masked_copy(compose_file(config_dir(), [], section), [section]))
    parser = argparse.ArgumentParser(
        prog=program,
        description=textwrap.fill(description, WIDTH),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration below")
    parser.add_argument("--config-dir", type=home_path, metavar="DIR", help="a folder with your YAML files")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the jobs, train nothing")
    arguments = parser.parse_args()
    overrides = list(arguments.overrides)
    if problems := [f"{override}: {problem}" for override in overrides if (problem := problem_of(override))]:
        refuse(problems, program)
    if arguments.config_dir is not None:
        if not arguments.config_dir.is_dir():
            refuse([f"--config-dir {arguments.config_dir}: no such folder"], program)
        add_modules_beside(str(arguments.config_dir))
        overrides += search_path(str(arguments.config_dir))
    return overrides, arguments.dry_run


def checked_jobs(program: str, primary: str, overrides: list[str], make: Callable[[], T]) -> T:
    """What ``make`` returns; problems of the overrides of the YAML file ``primary`` end the process."""
    try:
        compose_file(config_dir(), overrides, primary)  # reports most problems before torch is imported
        return make()
    except COMPOSE_ERRORS as error:
        refuse(composition_problems(config_dir(), overrides, error, primary), program)
    except ConfigError as error:
        refuse([str(problem) for problem in error.problems], program)


def command(program: str) -> str:
    """The command line of this process."""
    return shlex.join([program, *sys.argv[1:]])


def worker_count(asked: int | None, jobs: int) -> int:
    """The number of worker processes: as many as asked for or one a core, and no more than jobs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or cores, jobs))


def run_in_folder(program: str, key: str, folder: Path, work: Callable[[], int]) -> int:
    """Calls ``work`` while the folder is locked, and prints what stopped it, if anything; returns the exit code.

    Args:
        key: that names the folder.
    """
    from qat_ste.app.cell_jobs import JobLost

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _signals_raise(), locked(folder, key):
            return work()
    except (FolderInUse, ArgumentError) as error:
        refuse([str(error)], program)
    except _Stopped as stopped:
        exit_code, reason = 128 + stopped.number, f"stopped by {signal.Signals(stopped.number).name}"
    except JobLost as lost:
        exit_code, reason = 1, str(lost)
    except OSError as error:
        exit_code, reason = 1, of_error(error)
    print(f"{program}: {reason}; the same command goes on from there: {command(program)}", file=sys.stderr)  # noqa: T201
    return exit_code


def train_missing(jobs: Sequence[J], trainer: Trainer, described: Callable[[J], str]) -> None:
    """Trains the cells that the trainer's folder lacks, with a line of progress for each job."""
    from qat_ste.app.cell_jobs import CellFiles
    from qat_ste.loggers.jobs import JobsProgress

    files = CellFiles(trainer.folder)
    missing = [files.missing(job) for job in jobs]
    total, left = (sum(job.work for job in each) for each in (jobs, missing))
    with JobsProgress(total, total - left) as progress:
        for job, seconds in trainer.run([job for job in missing if job.cells]):
            progress.advance(job.work, f"{described(job)}: {seconds:.0f} s")


class Trainer(Protocol):
    """Trains jobs, in processes of this machine or on a cluster, and writes their cells to ``folder``."""

    folder: Path

    def run(self, jobs: Sequence[J]) -> Iterable[tuple[J, float]]: ...


class _Stopped(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM stop at once; finished cells are on the disk already."""

    def stop(number: int, _: FrameType | None) -> None:
        raise _Stopped(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

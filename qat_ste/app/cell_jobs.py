"""Jobs of an atlas or a study: worker processes train the cells that a folder does not hold yet."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from qat_ste.base.files import read_json, write_json
from qat_ste.base.process import when_parent_ends
from qat_ste.base.run_config import completed

J = TypeVar("J", bound="Job")
Train = Callable[[Any], Mapping[Any, Any]]  # a job -> a dataclass for each cell


@dataclass(frozen=True)
class Job:
    """Cells that are trained on the same batches.

    Args:
        steps: of each cell.
        cells: the configuration on which the numbers of a cell depend, by what names the cell within the job.
    """

    steps: int
    cells: Mapping[Any, Mapping[str, Any]]

    @property
    def work(self) -> int:
        """The cost, in steps times cells."""
        return self.steps * len(self.cells)


class JobLost(RuntimeError):
    """A job ended without a result; the cells that are finished are kept."""


class CellFiles:
    """The cells in a folder, by the configuration on which their numbers depend; missing newer keys get defaults."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._cells = folder, dict[str, dict[str, Any]]()
        for path in folder.glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # the file may hold anything
                content = read_json(path)
                self._cells[_key(content["config"])] = dict(content["cell"])

    def cell(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The cell of this configuration, if the folder holds it."""
        return self._cells.get(_key(config))

    def missing(self, job: J) -> J:
        """The job with only the cells that are missing or ended with a fault; one that diverged would do so again."""
        cells = {name: (self.cell(config), config) for name, config in job.cells.items()}
        return replace(job, cells={name: config for name, (cell, config) in cells.items() if not _is_done(cell)})


def _is_done(cell: Mapping[str, Any] | None) -> bool:
    return cell is not None and (not cell["fault"] or bool(cell.get("diverged")))


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(completed(config), sort_keys=True)


class Workers:
    """Processes of this machine that train jobs, each with one thread; they end with this one.

    Args:
        train: trains the cells of a job and returns a dataclass for each; sent to the processes.
        folder: of the cells, whose files are written as each job ends.
        count: 1: trains in this process.
    """

    def __init__(self, train: Train, folder: Path, count: int) -> None:
        self.train, self.folder, self.count = train, folder, count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            for process in active_children():  # otherwise they would finish their jobs first
                process.kill()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self, jobs: Sequence[J]) -> Iterator[tuple[J, float]]:
        """Trains the jobs; yields each and its duration in seconds once its files are written.

        Raises:
            JobLost: a worker was killed.
        """
        if self.count == 1:
            for job in jobs:
                yield job, train_job(job, self.train, self.folder)
            return
        if self._pool is None:
            arguments = self.train, self.folder
            self._pool = ProcessPoolExecutor(self.count, get_context("spawn"), _begin, arguments)
        futures = {self._pool.submit(_work, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                seconds = future.result()
            except BrokenProcessPool as error:
                raise JobLost("a worker was killed") from error
            yield futures[future], seconds


_shared: list[Any] = []


def _begin(train: Train, folder: Path) -> None:
    """Sets up a worker before its first job."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the launching process handles them
        signal.signal(number, signal.SIG_IGN)
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGKILL))
    torch.set_num_threads(1)
    _shared[:] = train, folder


def _work(job: Job) -> float:
    return train_job(job, *_shared)


def train_job(job: Job, train: Train, folder: Path) -> float:
    """Trains the cells of a job and writes their files; returns the duration in seconds."""
    began = time.monotonic()
    cells = train(job)
    seconds = time.monotonic() - began
    for name, cell in cells.items():
        path = folder / f"{sha256(_key(job.cells[name]).encode()).hexdigest()[:20]}.json"
        write_json(path, {"config": job.cells[name], "cell": asdict(cell)})
    return seconds

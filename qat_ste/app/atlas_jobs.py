"""The jobs of an atlas: worker processes train them, and what has been trained is not trained again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from qat_ste.base.files import read_json, write_json
from qat_ste.base.process import when_parent_ends
from qat_ste.base.run_config import completed, differences, without_added
from qat_ste.experiment.many_estimators import Cell


@dataclass(frozen=True)
class Job:
    """Cells that are trained on the same batches: those of one optimizer, seed and learning rate.

    Args:
        cells: by estimator, the configuration on which the numbers of its cell depend.
    """

    optimizer: str
    seed: int
    lr: float
    steps: int
    cells: Mapping[str, Mapping[str, Any]]

    @property
    def work(self) -> int:
        """What it costs, in steps of cells."""
        return self.steps * len(self.cells)

    def path(self, folder: Path, estimator: str) -> Path:
        """The file of a cell, named by its configuration."""
        content = json.dumps(without_added(self.cells[estimator]), sort_keys=True)
        return folder / f"{sha256(content.encode()).hexdigest()[:20]}.json"

    def read(self, folder: Path, estimator: str) -> dict[str, Any] | None:
        """The cell as it was written; None where it was not, or not for this configuration."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_json(self.path(folder, estimator))
            if not differences(completed(found["config"]), completed(self.cells[estimator])):
                return dict(found["cell"])
        return None

    def missing(self, folder: Path) -> Job:
        """The job with those cells alone that are not there, or ended with a fault."""
        found = {name: self.read(folder, name) for name in self.cells}
        left = {name: cell for name, cell in self.cells.items() if (found[name] or {"fault": "missing"})["fault"]}
        return replace(self, cells=left)


Train = Callable[[Job], Mapping[str, Cell]]


def train_jobs(
    jobs: Sequence[Job], train: Train, folder: Path, workers: int
) -> Generator[tuple[Job, float], None, None]:
    """Trains what is missing of the jobs; yields each when its files are there, with the seconds that it took.

    Several workers are processes, with a thread each; one is this process. However this one ends, they end too.

    Args:
        train: trains the cells of a job; sent to the workers.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [job for job in (job.missing(folder) for job in jobs) if job.cells]
    if workers == 1:
        for job in left:
            yield job, _train(job, train, folder)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (train, folder))
    try:
        futures = {pool.submit(_work, job): job for job in left}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        for process in active_children():  # else they would finish their jobs first
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


def collect(jobs: Sequence[Job], folder: Path) -> list[dict[str, Any]]:
    """All cells, each with its place in the grid; those that were never written have a fault that says so."""
    absent = asdict(Cell(fault="was not trained"))
    return [
        {"estimator": name, "optimizer": job.optimizer, "seed": job.seed, "lr": job.lr, "steps": job.steps}
        | (job.read(folder, name) or absent)
        for job in jobs
        for name in job.cells
    ]


_shared: list[Any] = []


def _begin(train: Train, folder: Path) -> None:
    """In a worker, before its first job."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the launching process decides
        signal.signal(number, signal.SIG_IGN)
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGKILL))
    torch.set_num_threads(1)
    _shared[:] = train, folder


def _work(job: Job) -> float:
    return _train(job, *_shared)


def _train(job: Job, train: Train, folder: Path) -> float:
    began = time.monotonic()
    cells = train(job)
    seconds = time.monotonic() - began
    for name, cell in cells.items():
        write_json(job.path(folder, name), {"config": job.cells[name], "cell": asdict(cell)})
    return seconds

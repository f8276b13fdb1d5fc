"""Trains jobs of cells on a cluster through submitit, with the settings of Hydra's launcher."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qat_ste.app.cell_jobs import J, Job, JobLost, Train, train_job

CLUSTERS = {"SlurmLauncher": "slurm", "LocalLauncher": "local"}  # of submitit, by the launcher's class
PLAIN = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "nodes", "stderr_to_stdout", "tasks_per_node",
         "timeout_min")  # fmt: skip
POLL_SECONDS = 5.0
# submitit handles these signals only once Python has loaded the job; by default they would end it before.
PYTHON = f'sh -c \'trap "" TERM USR1 USR2; exec "$0" "$@"\' {shlex.quote(sys.executable)}'


def launcher_name(launcher: Mapping[str, Any]) -> str:
    """The class of a launcher, without its module."""
    return str(launcher["_target_"]).rpartition(".")[2]


class ClusterJobs:
    """Jobs of one array; a job that is preempted or runs out of time is queued again and starts anew.

    Args:
        train: trains the cells of a job and returns a dataclass for each.
        folder: of the cells, on a disk that all nodes see.
        launcher: the node ``hydra.launcher`` of a launcher in ``CLUSTERS``.
    """

    def __init__(self, train: Train, folder: Path, launcher: Mapping[str, Any]) -> None:
        import submitit

        cluster = CLUSTERS[launcher_name(launcher)]
        self.train, self.folder, self._submitted = train, folder, list[Any]()
        settings = {key: value for key, value in launcher.items() if key != "_target_"}
        limits = {"slurm_max_num_timeout": settings.pop("max_num_timeout")} if "max_num_timeout" in settings else {}
        self._executor = submitit.AutoExecutor(folder.parent / "submitit", cluster, slurm_python=PYTHON, **limits)
        named = {key if key in PLAIN else f"{cluster}_{key}": value for key, value in settings.items()}
        self._executor.update_parameters(**{key: value for key, value in named.items() if value is not None})

    def __enter__(self) -> ClusterJobs:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for submitted in self._submitted:
            if not submitted.done():
                submitted.cancel()

    def run(self, jobs: Sequence[J]) -> Iterator[tuple[J, float]]:
        """Trains the jobs; yields each and its duration in seconds once its files are written.

        Raises:
            submitit.core.utils.FailedJobError: a job raised this.
            JobLost: jobs ended without a result; raised once the others ended.
        """
        submitted = self._executor.map_array(_OnNode(self.train, self.folder), jobs)
        waiting = list(zip(jobs, submitted, strict=True))
        self._submitted = [each for _, each in waiting]
        lost = list[str]()
        while waiting:
            for job, each in [pair for pair in waiting if pair[1].done()]:
                try:
                    seconds = _seconds(each)
                except JobLost as error:
                    lost.append(str(error))
                else:
                    if seconds is None:
                        continue
                    yield job, seconds
                waiting.remove((job, each))
            time.sleep(POLL_SECONDS if waiting else 0.0)
        if lost:
            raise JobLost(", ".join(lost))


def _seconds(submitted: Any) -> float | None:
    """What the job returned; None where it was called done while it was queued again."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return float(submitted.result())
    except FailedJobError:
        raise
    except UncompletedJobError:
        if submitted.done(force_check=True):
            message = (
                f"job {submitted.job_id} ended as {submitted.state} without a result, log {submitted.paths.stderr}"
            )
            raise JobLost(message) from None
        return None


class _OnNode:
    """Trains one job on a node."""

    def __init__(self, train: Train, folder: Path) -> None:
        self.train, self.folder = train, folder

    def __call__(self, job: Job) -> float:
        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", 1)))
        return train_job(job, self.train, self.folder)

    def checkpoint(self, job: Job) -> Any:
        """What submitit queues again; the finished cells of the job are trained again."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)

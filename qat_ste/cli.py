"""``qat-run``: composes the configuration with Hydra and calls the runner. Imports torch only to train."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.composition import composition_problems, config_dir, packaged_default
from qat_ste.config import RunConfig
from qat_ste.job import Job, outer_rank, tell, tell_fault
from qat_ste.sweep import Sweep, folder_name, note, sweep_name

log = logging.getLogger(__name__)
_launching_process: int | None = None

ConfigStore.instance().store(name="schema", node=RunConfig)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
# Cached, as Hydra's own ${now:}: jobs in other processes are given what the launching process found.
OmegaConf.register_new_resolver("sweep_name", lambda: sweep_name(sys.argv[1:]), replace=True, use_cache=True)


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def _job(cfg: DictConfig) -> None:
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode is RunMode.MULTIRUN
    choices = {
        group: choice for group, choice in hydra_config.runtime.choices.items() if not group.startswith("hydra/")
    }
    _name_for_logger(cfg.logger, choices, Path(hydra_config.sweep.dir).name if sweeping else None)
    job_logging: Any = OmegaConf.to_container(hydra_config.job_logging, resolve=True)
    job = Job(
        cfg,
        Path(hydra_config.runtime.output_dir),
        {"command": shlex.join(["qat-run", *hydra_config.overrides.task]), "choices": choices},
        packaged_default(config_dir(), choices),
        job_logging,
    )
    if cfg.dry_run:
        _describe(job)
    elif not sweeping:
        try:
            exit_code = job.run()
        except Exception as error:
            exit_code = tell_fault(error, job.folder)
        if exit_code:
            raise SystemExit(exit_code)
    elif _launching_process == os.getpid():
        _run_of_sweep(job)
    else:
        _end_with_parent()
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # run.log has it all
            _run_of_sweep(job)


def _name_for_logger(logger: DictConfig, choices: dict[str, str | None], group: str | None) -> None:
    """Puts what the run is called among others where the logger takes it and nothing was asked for."""
    tags = [choice for name in ("experiment", "row", "estimator", "optimizer") if (choice := choices.get(name))]
    for key, value in {"group": group, "job_type": choices.get("row"), "tags": tags}.items():
        if logger.get(key, "") is None:
            logger[key] = value


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


def _describe(job: Job) -> None:
    """Prints the line and leaves no run folder behind; of a sweep the other lines follow."""
    try:
        print(job.describe())  # noqa: T201
    except Exception as error:
        exit_code = tell_fault(error, None)
        if Sweep.current is None:
            raise SystemExit(exit_code) from None
        Sweep.current.faults += 1
    finally:
        with suppress(OSError):  # not empty: a run is there
            job.folder.rmdir()


def _run_of_sweep(job: Job) -> None:
    """Runs it and notes what came of it. Only a signal keeps the jobs after it from their turn."""
    note(job.folder, "running")
    try:
        skipped = job.finished()
        exit_code = 0 if skipped else job.run()
    except Exception as error:
        reason = str(error)
        try:
            tell_fault(error, job.folder)
        except Exception:
            log.exception("the run failed")
            reason = f"{type(error).__name__}: {error}"
        note(job.folder, "failed", reason)
        return
    if exit_code > 128:
        note(job.folder, "preempted", signal.Signals(exit_code - 128).name)
        if _launching_process == os.getpid():
            raise SystemExit(exit_code)
        if callable(signal.getsignal(exit_code - 128)):  # of a launcher, which may want to queue the job again
            signal.raise_signal(exit_code - 128)
    elif exit_code:
        note(job.folder, "failed")  # its status says why
    else:
        note(job.folder, "skipped" if skipped else "done")


def main() -> None:
    """Entry point. Bad input: one line a problem and exit code 2; a sweep of which not all runs are done: 1."""
    global _launching_process
    _launching_process = os.getpid()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks of its own and exits with 1
    if outer_rank():  # rank 0 keeps the run folder
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    if "dry_run=true" in sys.argv:
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
        sys.argv += ["hydra/launcher=basic"] if {"-m", "--multirun"} & set(sys.argv) else []
    exit_code = 0
    try:
        _job()
    except (HydraException, OmegaConfBaseException) as error:
        tell(composition_problems(config_dir(), sys.argv[1:], error))
        raise SystemExit(2) from None
    except SystemExit as stopped:
        if Sweep.current is None:
            raise
        exit_code = int(stopped.code or 0)
    except Exception as error:
        if Sweep.current is None:
            raise
        tell([f"the launcher failed: {type(error).__name__}: {' '.join(str(error).split())[-500:]}"])
        exit_code = 1
    if Sweep.current is not None:
        raise SystemExit(exit_code or Sweep.current.end(dry_run="dry_run=true" in sys.argv))


if __name__ == "__main__":
    main()

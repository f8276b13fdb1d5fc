"""``qat-run``: composes the configuration with Hydra and calls the runner. Imports torch only to train."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat_ste import __version__
from qat_ste.app.compose import (
    COMPOSE_ERRORS,
    add_modules_beside,
    compose_file,
    composition_problems,
    config_dir,
    options,
    packaged_default,
    search_path,
    split_user_dir,
    user_dir,
    with_model_keys,
    without_plus,
)
from qat_ste.app.help_text import run_help
from qat_ste.app.job import Job, outer_rank, quoted, refuse, tell, tell_fault
from qat_ste.app.sweep import Sweep, folder_name, job_folder_name, run_of_sweep, sweep_name
from qat_ste.base.process import run_program
from qat_ste.base.text import of_error

_launching_process: int | None = None

OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("job_folder_name", job_folder_name, replace=True)
# Cached like Hydra's ${now:}, so that jobs in other processes get the launching process's name.
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
        {"command": shlex.join(["qat-run", *without_plus(hydra_config.overrides.task)]), "choices": choices},
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
    else:
        run_of_sweep(job, hydra_config.launcher, in_launching_process=_launching_process == os.getpid())


def _name_for_logger(logger: DictConfig, choices: dict[str, str | None], group: str | None) -> None:
    """Sets the logger's group, job type and tags where it has these keys and they are null."""
    tags = [choice for name in ("experiment", "row", "estimator", "optimizer") if (choice := choices.get(name))]
    for key, value in {"group": group, "job_type": choices.get("row"), "tags": tags}.items():
        if logger.get(key, "") is None:
            logger[key] = value


def _describe(job: Job) -> None:
    """Prints the job's line and removes its run folder; a problem in a sweep does not stop the other jobs."""
    try:
        print(job.describe())  # noqa: T201
    except Exception as error:
        exit_code = tell_fault(error, None)
        if Sweep.current is None:
            raise SystemExit(exit_code) from None
        Sweep.current.faults += 1
    finally:
        with suppress(OSError):  # not empty: it holds a run
            job.folder.rmdir()


def _formula_quoted(argument: str) -> str:
    """Quotes a formula that Hydra cannot parse: it takes cos(u) for a call of one of its functions."""
    key, _, value = argument.partition("=")
    if key.lstrip("+") == "estimator.expression":
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException:
            return quoted(key, value)
    return argument


def _print_help(arguments: list[str]) -> None:
    user = user_dir(arguments)
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    try:
        cfg = compose_file(config_dir(), [*search_path(user), *overrides])
    except COMPOSE_ERRORS as error:
        refuse(composition_problems(config_dir(), arguments, error))
    names = sorted(
        {path.parent.name for folder in (config_dir(), user) if folder for path in Path(folder).glob("*/*.yaml")}
    )
    print(run_help(cfg, {group: list(options(group, config_dir(), user)) for group in names}))  # noqa: T201


def main() -> None:
    """Entry point. Exit codes: 2 for bad input, with one line per problem; 1 if runs of a sweep are not done."""
    global _launching_process
    _launching_process, Sweep.current = os.getpid(), None
    sys.argv = [_formula_quoted(argument) for argument in sys.argv]
    logging.raiseExceptions = False  # no traceback per line if the disk under run.log is full
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its tracebacks and exits with 1
    if "--version" in sys.argv:
        print(f"qat-run {__version__}")  # noqa: T201
        return
    if {"--help", "-h"} & set(sys.argv):
        _print_help(sys.argv[1:])
        return
    user, others = split_user_dir(sys.argv[1:])
    if user:
        add_modules_beside(user)
        sys.argv[1:] = [f"--config-dir={user}", *others]  # with ~ expanded
    if outer_rank():  # rank 0 keeps the run folder
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    if "dry_run=true" in sys.argv:
        sys.argv += ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
        sys.argv += ["hydra/launcher=basic"] if {"-m", "--multirun"} & set(sys.argv) else []
    exit_code = 0
    arguments = sys.argv[1:]
    sys.argv[1:] = with_model_keys(arguments)
    try:
        _job()
    except COMPOSE_ERRORS as error:
        refuse(composition_problems(config_dir(), arguments, error))
    except SystemExit as stopped:
        if Sweep.current is None:
            raise
        exit_code = int(stopped.code or 0)
    except OSError as error:  # of Hydra's files; a run handles those of its files
        tell([of_error(error)])
        exit_code = 1
        if Sweep.current is None:
            raise SystemExit(exit_code) from None
    except Exception as error:
        if Sweep.current is None:
            raise
        tell([f"the launcher failed: {type(error).__name__}: {' '.join(str(error).split())[-500:]}"])
        exit_code = 1
    if Sweep.current is not None:
        sweep_exit_code = Sweep.current.end(dry_run="dry_run=true" in sys.argv)
        raise SystemExit(exit_code or sweep_exit_code)


if __name__ == "__main__":
    run_program(main)

"""``qat-atlas``: trains estimators x optimizers at two learning rates and several seeds, and writes a page."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from qat_ste.app.compose import (
    COMPOSE_ERRORS,
    add_modules_beside,
    compose_file,
    composition_problems,
    config_dir,
    search_path,
)
from qat_ste.app.help_text import commented
from qat_ste.app.job import refuse
from qat_ste.app.schema import ConfigError
from qat_ste.base.files import FolderInUse, home_path, locked, write_json
from qat_ste.base.text import of_error

if TYPE_CHECKING:
    from qat_ste.app.atlas_grid import Grid

PROGRAM = "qat-atlas"
TAKEN = ("atlas.", "dataset", "model", "quantizer", "paths.data=", "train.batch_size=", "train.shuffle=",
         "train.schedule=", "train.warmup=", "train.l2")  # fmt: skip
EXAMPLES = """\
An entry of a list is an option of qat-run's groups `estimator` and `optimizer`; quote an entry with overrides:
  qat-atlas
  qat-atlas 'atlas.estimators=[tanh,"cosine estimator.a=0.9"]' 'atlas.optimizers=["sgd optimizer.lr=1e-2",lion]'
  qat-atlas 'atlas.estimators=[mine]' --config-dir my_conf      # my_conf/estimator/mine.yaml names your class
  qat-atlas 'atlas.seeds=[1]' atlas.steps=100 atlas.output=DIR --dry-run
Other keys: dataset, model, quantizer and their keys, train.batch_size, .shuffle, .schedule, .warmup, .l2. The same
command in the same folder resumes and skips finished cells. The default grid is:
"""


def main() -> None:
    """Entry point. Exit codes: 2 for bad input (one line per problem), 1 if a cell failed, 130 or 143 if stopped."""
    arguments = _parser().parse_args()
    overrides = list(arguments.overrides)
    rejected = [override for override in overrides if not override.lstrip("+").startswith(TAKEN)]
    if rejected:
        refuse([f"{override}: an atlas takes {', '.join(TAKEN)} and no other key" for override in rejected], PROGRAM)
    if arguments.config_dir is not None:
        if not arguments.config_dir.is_dir():
            refuse([f"--config-dir {arguments.config_dir}: no such folder"], PROGRAM)
        add_modules_beside(str(arguments.config_dir))
        overrides += search_path(str(arguments.config_dir))
    grid = _grid(overrides)
    if arguments.dry_run:
        for job in grid.jobs:
            print(f"{job.optimizer}  lr={job.lr:g}  seed={job.seed}  {job.steps} steps")  # noqa: T201
        return
    raise SystemExit(_run(grid))


def _parser() -> argparse.ArgumentParser:
    epilog = ""
    if {"-h", "--help"} & set(sys.argv):
        epilog = EXAMPLES + commented(OmegaConf.masked_copy(compose_file(config_dir(), [], "atlas"), ["atlas"]))
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Trains every estimator and its STE counterpart under every optimizer, and says on one page which "
        "are the STE in disguise.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration below")
    parser.add_argument("--config-dir", type=home_path, metavar="DIR", help="a folder with your YAML files")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the jobs, train nothing")
    return parser


def _grid(overrides: list[str]) -> Grid:
    try:
        compose_file(config_dir(), overrides, "atlas")  # reports most problems before torch is imported
        from qat_ste.app.atlas_grid import grid_of

        return grid_of(overrides)
    except COMPOSE_ERRORS as error:
        refuse(composition_problems(config_dir(), overrides, error, "atlas"), PROGRAM)
    except ConfigError as error:
        refuse([str(problem) for problem in error.problems], PROGRAM)


def _run(grid: Grid) -> int:
    """Trains the grid in its locked folder and prints what stopped it, if anything; returns the exit code."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        grid.folder.mkdir(parents=True, exist_ok=True)
        with _signals_raise(), locked(grid.folder, "atlas.output"):
            return _train_and_write(grid)
    except FolderInUse as error:
        refuse([str(error)], PROGRAM)
    except _Stopped as stopped:
        exit_code, reason = 128 + stopped.number, f"stopped by {signal.Signals(stopped.number).name}"
    except BrokenProcessPool:
        exit_code, reason = 1, "a worker was killed"
    except OSError as error:
        exit_code, reason = 1, of_error(error)
    print(f"qat-atlas: {reason}; the same command goes on from there: {_command()}", file=sys.stderr)  # noqa: T201
    return exit_code


def _train_and_write(grid: Grid) -> int:
    """Trains the missing cells, writes the numbers and the page; returns the exit code."""
    from qat_ste.app.atlas_jobs import CellFiles, collect, train_jobs
    from qat_ste.experiment.run_report import versions
    from qat_ste.loggers.jobs import JobsProgress
    from qat_ste.report.atlas.page import write_atlas

    folder = grid.folder / "cells"
    files = CellFiles(folder)
    left = sum(files.missing(job).work for job in grid.jobs)
    total = sum(job.work for job in grid.jobs)
    trained = closing(train_jobs(grid.jobs, grid.training, folder, grid.workers))
    with JobsProgress(total, total - left) as progress, trained as jobs:
        for job, seconds in jobs:
            progress.advance(job.work, f"{job.optimizer}, lr {job.lr:g}, seed {job.seed}: {seconds:.0f} s")
    cells = collect(grid.jobs, folder)
    write_json(
        grid.folder / "atlas.json",
        {
            "schema": 1,
            "command": _command(),
            "versions": versions(),
            "settings": grid.settings,
            "estimators": list(grid.training.estimators),
            "optimizers": grid.lrs,
            "seeds": grid.settings["atlas"]["seeds"],
            "smaller": grid.settings["atlas"]["smaller"],
            "cells": cells,
        },
    )
    for name, reason in write_atlas(grid.folder).items():
        print(f"qat-atlas: the figure {name} could not be drawn: {reason}", file=sys.stderr)  # noqa: T201
    failed = [cell for cell in cells if cell["fault"]]
    for cell in failed:
        name = f"{cell['estimator']} under {cell['optimizer']}, seed {cell['seed']}, lr {cell['lr']:g}"
        print(f"qat-atlas: {name}: {cell['fault']}", file=sys.stderr)  # noqa: T201
    print((grid.folder / "atlas.html").resolve())  # noqa: T201
    return 1 if failed else 0


def _command() -> str:
    return shlex.join([PROGRAM, *sys.argv[1:]])


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


if __name__ == "__main__":
    main()

"""``qat-atlas``: trains estimators x optimizers at two learning rates and several seeds, and writes a page."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from qat_ste.app.cells_cli import checked_jobs, command, parsed, run_in_folder, train_missing
from qat_ste.base.files import write_json

if TYPE_CHECKING:
    from qat_ste.app.atlas_grid import Grid

PROGRAM = "qat-atlas"
TAKEN = ("atlas.", "dataset", "model", "quantizer", "paths.data=", "train.batch_size=", "train.shuffle=",
         "train.schedule=", "train.warmup=", "train.l2")  # fmt: skip
DESCRIPTION = (
    "Trains every estimator and its STE counterpart under every optimizer, and says on one page which are the STE in "
    "disguise."
)
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
    overrides, dry_run = parsed(PROGRAM, "atlas", DESCRIPTION, EXAMPLES, _problem_of)
    grid = checked_jobs(PROGRAM, "atlas", overrides, lambda: _grid(overrides))
    if dry_run:
        for job in grid.jobs:
            print(f"{job.optimizer}  lr={job.lr:g}  seed={job.seed}  {job.steps} steps")  # noqa: T201
        return
    raise SystemExit(run_in_folder(PROGRAM, "atlas.output", grid.folder, lambda: _train_and_write(grid)))


def _problem_of(override: str) -> str | None:
    taken = override.lstrip("+").startswith(TAKEN)
    return None if taken else f"an atlas takes {', '.join(TAKEN)} and no other key"


def _grid(overrides: list[str]) -> Grid:
    from qat_ste.app.atlas_grid import grid_of

    return grid_of(overrides)


def _train_and_write(grid: Grid) -> int:
    """Trains the missing cells, writes the numbers and the page; returns the exit code."""
    from qat_ste.app.atlas_grid import collect
    from qat_ste.app.cell_jobs import Workers
    from qat_ste.experiment.run_report import versions
    from qat_ste.report.atlas.page import write_atlas

    folder = grid.folder / "cells"
    with Workers(grid.training, folder, grid.workers) as workers:
        train_missing(grid.jobs, workers, lambda job: f"{job.optimizer}, lr {job.lr:g}, seed {job.seed}")
    cells = collect(grid.jobs, folder)
    write_json(
        grid.folder / "atlas.json",
        {
            "schema": 1,
            "command": command(PROGRAM),
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


if __name__ == "__main__":
    main()

"""``qat-tune``: trains estimators and the STE over one grid of learning rates, and compares the best of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat_ste.app.cells_cli import checked_jobs, command, parsed, run_in_folder, train_missing
from qat_ste.app.job import refuse

if TYPE_CHECKING:
    from qat_ste.app.tune_grid import TrialJob, TuneGrid
    from qat_ste.experiment.tuning import Place

PROGRAM = "qat-tune"
NOT_TAKEN = ("counterparts", "metrics.", "logger", "checkpoint.", "train.seed", "train.lr_scale", "train.segment",
             "runtime.devices", "runtime.placement", "runtime.threads", "dry_run", "row=")  # fmt: skip
DESCRIPTION = (
    "Trains each estimator and the STE over one grid of learning rates and several seeds, chooses the best rate of "
    "each on held-out data, and says on one page which estimators are better, worse or equivalent."
)
EXAMPLES = """\
An entry of tune.estimators is an option of qat-run's group `estimator`; quote
an entry with overrides:
  qat-tune estimator=tanh,ewgs optimizer=adam
  qat-tune estimator=tanh optimizer=sgd 'tune.lr=[1e-3,3e-3,1e-2]' tune.seeds=20
  qat-tune 'tune.estimators=[tanh,"cosine estimator.a=0.9"]' --dry-run
  qat-tune estimator=tanh hydra/launcher=slurm hydra.launcher.partition=gpu
Other keys are those of qat-run: dataset, model, optimizer, quantizer, train,
runtime, experiment. The same command in the same folder resumes and skips
finished trainings. The grid is:
"""


def main() -> None:
    """Entry point. Exit codes: 2 for bad input (one line per problem), 1 if a training failed, 130 or 143 if stopped.

    A training that diverged is a result, not a failure.
    """
    overrides, dry_run = parsed(PROGRAM, "tune", DESCRIPTION, EXAMPLES, _problem_of)
    overrides = _with_estimators(overrides)
    grid = checked_jobs(PROGRAM, "tune", overrides, lambda: _grid(overrides))
    if dry_run:
        for job in grid.jobs(grid.places):
            print(_described(job))  # noqa: T201
        return
    raise SystemExit(run_in_folder(PROGRAM, "tune.output", grid.folder, lambda: _train_and_write(grid)))


def _problem_of(override: str) -> str | None:
    key = override.lstrip("+~")
    if key.startswith("estimator."):
        return "an entry has the keys of its estimator, for example 'tune.estimators=[\"tanh estimator.k=9\"]'"
    if key.startswith("optimizer=") and "," in key:
        return "a study has one optimizer; call qat-tune once for each, with its own rates and tune.output"
    return f"qat-tune does not take {', '.join(NOT_TAKEN)}" if key.startswith(NOT_TAKEN) else None


def _with_estimators(overrides: list[str]) -> list[str]:
    """The overrides with ``estimator=a,b`` as ``tune.estimators=[a,b]``."""
    names = [override for override in overrides if override.startswith("estimator=")]
    if not names:
        return overrides
    if len(names) > 1 or any(override.startswith("tune.estimators=") for override in overrides):
        refuse([f"{names[-1]}: the estimators are given twice; give one of estimator= and tune.estimators="], PROGRAM)
    others = [override for override in overrides if override not in names]
    return [*others, f"tune.estimators=[{names[0].partition('=')[2]}]"]


def _grid(overrides: list[str]) -> TuneGrid:
    from qat_ste.app.tune_grid import grid_of

    return grid_of(overrides)


def _train_and_write(grid: TuneGrid) -> int:
    """Trains the missing cells in rounds, writes the numbers and the page; returns the exit code."""
    from qat_ste.app.cell_jobs import CellFiles
    from qat_ste.experiment.tuning import TunedStudy, check_metric, next_places

    content = grid.content | {"command": command(PROGRAM), "cells": []}
    with grid.trainer() as trainer:
        while places := next_places(content):
            print(f"{len(places)} trainings: {_round(places, content)}", flush=True)  # noqa: T201
            train_missing(grid.jobs(places), trainer, _described)
            files = CellFiles(trainer.folder)
            content["cells"] += [grid.cell(place, files) for place in places]
            check_metric(content)
    page = TunedStudy(content).report(grid.folder)
    failed = [cell for cell in content["cells"] if cell["fault"] and not cell["diverged"]]
    for cell in failed:
        name = f"{cell['of'] or cell['estimator']}, lr {cell['lr']:g}, seed {cell['seed']}"
        print(f"{PROGRAM}: {name}: {cell['fault']}", file=sys.stderr)  # noqa: T201
    print(page.resolve())  # noqa: T201
    return 1 if failed else 0


def _round(places: Sequence[Place], content: Mapping[str, Any]) -> str:
    """What a round of trainings is for."""
    if any(place.role != "grid" for place in places):
        return "the STE at the best rates of the others"
    if not content["cells"]:
        return "the grid"
    return f"rates beyond the edge for {', '.join(dict.fromkeys(place.estimator for place in places))}"


def _described(job: TrialJob) -> str:
    names = ", ".join(dict.fromkeys(place.of or place.estimator for place in job.cells))
    return f"{len(job.cells)} networks of seed {job.seed} ({names})"


if __name__ == "__main__":
    main()

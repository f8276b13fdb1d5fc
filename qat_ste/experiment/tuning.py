"""``tune``: the best that an estimator reaches over a grid of learning rates, against the best that the STE reaches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat_ste.base.errors import FUNCTION, POSITIVE, ArgumentError, Instance, require
from qat_ste.base.files import home_path, write_json
from qat_ste.base.grid_sections import Tuning
from qat_ste.base.sections import Execution, Quantization, Training
from qat_ste.data.dataset import Batch
from qat_ste.estimators import Estimator, Ste
from qat_ste.experiment.batch_source import Batches
from qat_ste.experiment.checks import check_model, check_optimizer
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.randomness import kept_generators
from qat_ste.experiment.run_report import versions
from qat_ste.experiment.settings import optimizer_name, plain
from qat_ste.experiment.trials import Trial, TrialResult, train_trials
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.optimizers import Adjustment, MakeOptimizer
from qat_ste.report.tune.study import Study

log = logging.getLogger(__name__)
STE = "ste"  # the label of the plain STE in a study
GRID, SWAP, ADJUSTED = "grid", "swap", "adjusted"  # see Place


@dataclass(frozen=True)
class Place:
    """Where a trial belongs in a study.

    Args:
        role: ``grid``: its rate is a candidate for the best one; ``swap``: the STE at the best rate of another
            estimator; ``adjusted``: the counterpart ``ste`` of the estimator ``of``, at the best rate of that one.
    """

    estimator: str
    lr: float
    seed: int
    role: str = GRID
    of: str | None = None


def next_places(study: Mapping[str, Any]) -> list[Place]:
    """The trials to train next, given the cells that there are; empty where the study is complete.

    First the grid, then rates beyond its edges, then what is told of the STE at the best rates of the others.

    Args:
        study: the content of ``tune.json``, with the cells so far.
    """
    trained = {Place(**{key: cell[key] for key in Place.__dataclass_fields__}) for cell in study["cells"]}

    def missing(places: Iterable[tuple[Any, ...]]) -> list[Place]:
        wanted = [Place(name, lr, seed, *rest) for name, lr, *rest in places for seed in study["seeds"]]
        return [place for place in dict.fromkeys(wanted) if place not in trained]

    if places := missing((name, lr) for name in (STE, *study["estimators"]) for lr in study["grid"]):
        return places
    now = Study(study)
    if places := missing((name, curve.next_rate) for name, curve in now.curves.items() if curve.next_rate is not None):
        return places
    swaps = [(STE, lr, SWAP) for lr in now.swap_rates()]
    return missing([*swaps, *((STE, lr, ADJUSTED, name) for name, lr in now.adjusted().items())])


def cell_of(place: Place, result: TrialResult) -> dict[str, Any]:
    """A cell of ``tune.json``."""
    return asdict(place) | asdict(result)


def described(estimator: Estimator, adjustment: Adjustment, lr_factor: float | None) -> dict[str, Any]:
    """What the theorem says of an estimator under an optimizer, for ``tune.json``.

    Args:
        lr_factor: α; None where the estimator has none.
    """
    return {
        "lr_factor": lr_factor,
        "equivalence": str(adjustment.equivalence),
        "reason": str(adjustment),
        "refused": adjustment.reason if lr_factor is None else estimator.not_covered,
    }


def content_of(
    tuning: Tuning, lr: float, metric: str, estimators: Mapping[str, Mapping[str, Any]], optimizer: str, unit: str
) -> dict[str, Any]:
    """The content of ``tune.json``, without cells.

    Args:
        lr: of the optimizer, for a grid that is not given.
        estimators: what ``described`` returns, by name.
        unit: of the loss.
    """
    return {
        "schema": 1,
        "versions": versions(),
        "optimizer": optimizer,
        "metric": metric,
        "unit": unit,
        "margin": tuning.margin,
        "grid": tuning.rates(lr),
        "extensions": tuning.extensions,
        "seeds": list(range(1, tuning.seeds + 1)),
        "estimators": dict(estimators),
        "cells": [],
    }


@dataclass(frozen=True)
class TunedStudy:
    """A finished study: ``content`` is that of ``tune.json``, ``study`` reads it."""

    content: dict[str, Any]

    @property
    def study(self) -> Study:
        return Study(self.content)

    def report(self, folder: str | Path) -> Path:
        """Writes ``tune.json``, the page, its figures and tables; returns the path of the page."""
        from qat_ste.report.tune.page import write_study  # imports matplotlib

        folder = home_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tune.json", self.content)
        for figure, reason in write_study(folder).items():
            log.warning("figure %s could not be drawn: %s", figure, reason)
        return folder / "tune.html"


def tune(
    build_model: Callable[[], nn.Module],
    batches: Callable[[int], Batches],
    *,
    loss: Loss,
    estimators: Mapping[str, Estimator],
    optimizer: MakeOptimizer,
    lr: float,
    validation: Callable[[int], Iterable[Batch]],
    test: Iterable[Batch],
    tuning: Tuning = Tuning(),
    quantization: Quantization = Quantization(),
    training: Training = Training(),
    execution: Execution = Execution(),
) -> TunedStudy:
    """Trains each estimator and the STE over one grid of learning rates and several seeds; compares their best.

    The rate of each is chosen on the validation batches, the difference to the STE is measured on the test batches.

    Args:
        batches: seed -> training batches, without those of validation.
        estimators: by name; the STE is added.
        lr: middle of the grid where ``tuning.lr`` is None.
        validation: seed -> batches on which the learning rate is chosen.
        test: batches on which the chosen ones are compared.
        training: its seed is not used.

    The other arguments are those of ``compare``.

    Raises:
        ArgumentError: an argument is not allowed; the message starts with its name.
    """
    require(FUNCTION, build_model=build_model, batches=batches, loss=loss, optimizer=optimizer, validation=validation)
    require(Instance(Mapping), estimators=estimators)
    require(POSITIVE, lr=lr)
    require(Instance(Tuning), tuning=tuning)
    if wrong := [name for name, estimator in estimators.items() if not isinstance(estimator, Estimator)] or [
        name for name in estimators if name == STE
    ]:
        raise ArgumentError("estimators", wrong[0], f"a mapping of names other than {STE} to estimators")
    check_optimizer(optimizer, lr)
    about = {}
    for name, estimator in estimators.items():
        with kept_generators(torch.device("cpu")):
            model = quantize_weights(check_model(build_model()), quantization, estimator)
        cohort = Cohort(model, estimator, optimizer, lr, ["ste"])
        lr_factor = cohort.equivalent.lr_factor if cohort.equivalent else None
        about[name] = described(estimator, cohort.adjustment, lr_factor)
    content = content_of(tuning, lr, tuning.metric or "accuracy", about, optimizer_name(optimizer), "")
    sections = {"quantizer": quantization, "train": training, "tune": tuning, "runtime": execution}
    content["command"] = "qat_ste.tune"
    content["settings"] = {name: plain(vars(section)) for name, section in sections.items()}
    all_estimators = {STE: Ste(), **estimators}
    while places := next_places(content):
        for seed in content["seeds"]:
            trials = {place: trial_of(place, all_estimators) for place in places if place.seed == seed}
            results = train_trials(
                build_model, batches(seed), trials, loss=loss, optimizer=optimizer, quantization=quantization,
                training=replace(training, seed=seed), execution=execution, validation=validation(seed), test=test,
            )  # fmt: skip
            content["cells"] += [cell_of(place, result) for place, result in results.items()]
        check_metric(content)
    return TunedStudy(content)


def trial_of(place: Place, estimators: Mapping[str, Estimator]) -> Trial:
    """The trial of a place; an adjusted one is made of the estimator whose counterpart it is."""
    if place.of is not None:
        return Trial(estimators[place.of], place.lr, adjusted=True)
    return Trial(estimators[place.estimator], place.lr)


def check_metric(content: Mapping[str, Any]) -> None:
    """Whether trials that were evaluated have the metric.

    Raises:
        ArgumentError: they have losses, but no accuracy.
    """
    evaluated = [cell for cell in content["cells"] if cell["validation_loss"] is not None]
    if evaluated and content["metric"] == "accuracy" and evaluated[0]["validation_accuracy"] is None:
        raise ArgumentError("metric", "accuracy", "loss, since the targets are no classes")

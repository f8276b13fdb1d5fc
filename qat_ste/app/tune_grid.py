"""Turns a configuration into the trainings of a tuning study; reports every problem of the entries before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from qat_ste.app.cell_jobs import CellFiles, Job, Workers
from qat_ste.app.cells_cli import worker_count
from qat_ste.app.cluster import CLUSTERS, ClusterJobs, launcher_name
from qat_ste.app.compose import SEARCH_PATH, compose_file, config_dir
from qat_ste.app.entries import Entry, by_label, checked
from qat_ste.app.schema import ConfigError, parameters
from qat_ste.app.start import start_of_run
from qat_ste.app.validate import RunComponents
from qat_ste.base.errors import ArgumentError
from qat_ste.base.files import home_path
from qat_ste.base.grid_sections import TuneConfig
from qat_ste.base.run_config import identity
from qat_ste.data.dataset import Shard, TrainingBatches
from qat_ste.data.task import bits_per_token, task_of
from qat_ste.estimators import Estimator
from qat_ste.experiment.execution import allow_tf32
from qat_ste.experiment.trials import TrialResult, train_trials
from qat_ste.experiment.tuning import STE, Place, content_of, described, next_places, trial_of

AGAIN = "ste (again)"  # the label of the STE among the estimators
OF_RUNS = ("counterparts", "metrics", "tune", "estimator", "runtime.devices", "runtime.placement", "runtime.threads",
           "train.seed", "train.segment", "train.lr_scale")  # fmt: skip


@dataclass(frozen=True)
class TrialJob(Job):
    """Trials of one seed, by their places in the study."""

    seed: int


@dataclass(frozen=True)
class TrialTraining:
    """What all jobs share; calling it trains the trials of one job."""

    cfg: DictConfig
    components: RunComponents
    estimators: Mapping[str, Estimator]

    def __call__(self, job: TrialJob) -> Mapping[Place, TrialResult]:
        allow_tf32(self.cfg.runtime.tf32)
        cfg, device = self.cfg.copy(), self.components.device
        cfg.train.seed = job.seed
        dataset: Any = self.components.dataset.with_validation(job.seed)
        training = replace(self.components.training, seed=job.seed, segment=None)
        components = replace(self.components, dataset=dataset, training=training)
        execution = replace(components.execution, device=device)

        def batches(shard: Shard = Shard()) -> TrainingBatches:
            return dataset.train_batches(training.batch_size, training.shuffle, job.seed, device, shard)

        return train_trials(
            start_of_run(cfg, components, batches, execution, lambda: False),
            batches(),
            {place: trial_of(place, self.estimators) for place in job.cells},
            loss=task_of(dataset).loss,
            optimizer=components.optimizer,
            validation=dataset.validation_batches(device),
            test=dataset.test_batches(device),
            quantization=components.quantization,
            training=training,
            execution=execution,
        )


@dataclass(frozen=True)
class TuneGrid:
    """A study: the content of ``tune.json`` without cells, its folder, and what trains a job."""

    content: dict[str, Any]
    training: TrialTraining
    folder: Path
    tune: TuneConfig
    config_of: Callable[[Place], dict[str, Any]]
    launcher: dict[str, Any] | None

    def trainer(self) -> Workers | ClusterJobs:
        """What trains the jobs: processes of this machine, one on a GPU unless asked for more, or a cluster."""
        folder = self.folder / "cells"
        if self.launcher is not None:
            return ClusterJobs(self.training, folder, self.launcher)
        asked = self.tune.workers or (None if self.training.components.device.type == "cpu" else 1)
        return Workers(self.training, folder, worker_count(asked, len(self.jobs(self.places))))

    @property
    def places(self) -> list[Place]:
        """The trials of the grid, without those that depend on their results."""
        return next_places(self.content)

    def jobs(self, places: Sequence[Place]) -> list[TrialJob]:
        """Jobs of trials that share a seed."""
        jobs, steps = [], self.training.components.training.steps
        for seed in self.content["seeds"]:
            of_seed = iter([place for place in places if place.seed == seed])
            while part := list(islice(of_seed, self.tune.together)):
                jobs.append(TrialJob(steps, {place: self.config_of(place) for place in part}, seed))
        return jobs

    def cell(self, place: Place, files: CellFiles) -> dict[str, Any]:
        """The cell of ``tune.json`` at a place."""
        found = files.cell(self.config_of(place)) or {"fault": "was not trained"}
        return asdict(place) | asdict(TrialResult()) | found


def grid_of(overrides: list[str]) -> TuneGrid:
    """The study of ``tune.yaml`` with these overrides.

    Raises:
        ConfigError: with the problems of all entries, or of the validation split.
        Exception: one of ``COMPOSE_ERRORS``, for an override outside the entries.
    """
    cfg = compose_file(config_dir(), overrides, "tune", return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    launcher = _cluster(cfg, choices)
    del cfg["hydra"]
    components, tune = checked(cfg, choices), parameters(cfg, "tune")
    texts = [STE, *dict.fromkeys(tune.estimators or [choices["estimator"]])]
    search = [override for override in overrides if override.startswith(SEARCH_PATH)]
    entries = [Entry("tune.estimators", "estimator", text, cfg, choices, search) for text in texts]
    if problems := [problem for entry in entries for problem in entry.problems]:
        raise ConfigError(problems)
    components.dataset.prepare()
    _check_validation(components)
    asked_for = {AGAIN if label == STE else label: entry for label, entry in by_label(entries[1:]).items()}
    labelled = {STE: entries[0], **asked_for}
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    lr, pretrains = plain["optimizer"]["lr"], plain["train"]["pretrain_steps"]
    shared = identity(plain, leave_out=OF_RUNS)
    del shared["optimizer"]["lr"]
    shared["runtime"]["device"] = components.device.type
    shared |= {"data": components.dataset.fingerprint} | components.files
    shared |= {"pretrain_lr": lr} if pretrains else {}

    def config_of(place: Place) -> dict[str, Any]:
        node = labelled[place.of or place.estimator].node
        return {**shared, "estimator": node, "lr": place.lr, "seed": place.seed, "adjusted": place.of is not None}

    about = {
        label: described(entry.components.estimator, entry.components.adjustment, entry.components.lr_factor)
        for label, entry in asked_for.items()
    }
    task = task_of(components.dataset)
    of_text = task.loss is bits_per_token
    metric = tune.metric or ("loss" if of_text else "accuracy")
    unit = f"bits per {'byte' if task.num_classes == 256 else 'token'}" if of_text else ""
    content = content_of(tune, lr, metric, about, choices["optimizer"], unit)
    content["settings"] = {**shared, "tune": plain["tune"], "choices": choices}
    estimators = {label: entry.components.estimator for label, entry in labelled.items()}
    training = TrialTraining(cfg, components, estimators)
    return TuneGrid(content, training, home_path(tune.output), tune, config_of, launcher)


def _cluster(cfg: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of the launcher for a cluster; None without one.

    Raises:
        ConfigError: it is another launcher.
    """
    # Without the folder of submitit's files, which is in that of a sweep.
    node = {key: cfg.hydra.launcher[key] for key in cfg.hydra.launcher if key != "submitit_folder"}
    launcher: Any = OmegaConf.to_container(OmegaConf.create(node))
    name = launcher_name(launcher)
    if name not in ("BasicLauncher", *CLUSTERS):
        allowed = "must be slurm or submitit_local; tune.workers sets the processes of this machine"
        raise ConfigError([f"hydra/launcher={choices['hydra/launcher']}: {allowed}"])
    return launcher if name in CLUSTERS else None


def _check_validation(components: RunComponents) -> None:
    """Whether the data set can hold out a validation split and still fill a batch.

    Raises:
        ConfigError: it cannot.
    """
    dataset: Any = components.dataset
    if not hasattr(dataset, "with_validation"):
        needed = "with_validation and validation_batches, as qat_ste.data.dataset.Dataset describes them"
        raise ConfigError([f"dataset: {type(dataset).__name__} must have the methods {needed}"])
    training = components.training
    try:
        dataset.with_validation(1).train_batches(training.batch_size, training.shuffle, 1, torch.device("cpu"))
    except ArgumentError as error:
        key = {"batch_size": "train.batch_size"}.get(error.name, "dataset")
        raise ConfigError([f"{key}={error.value}: must be {error.allowed}, without the validation split"]) from error

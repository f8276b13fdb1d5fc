"""Turns a configuration into the jobs of an atlas; reports every problem of the entries before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from qat_ste.app.cell_jobs import CellFiles, Job
from qat_ste.app.cells_cli import worker_count
from qat_ste.app.compose import SEARCH_PATH, compose_file, config_dir
from qat_ste.app.entries import Entry, by_label, checked
from qat_ste.app.schema import ConfigError
from qat_ste.base.files import home_path
from qat_ste.base.sections import Quantization, TrainConfig
from qat_ste.data.dataset import Dataset
from qat_ste.estimators import Estimator
from qat_ste.experiment.many_estimators import Cell, train_cells
from qat_ste.optimizers import MakeOptimizer

TRAIN_KEYS = ("batch_size", "shuffle", "schedule", "warmup", "l2", "l2_include")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class AtlasJob(Job):
    """The cells of one optimizer, seed and learning rate, by estimator."""

    optimizer: str
    seed: int
    lr: float


@dataclass(frozen=True)
class CellTraining:
    """What all jobs share; calling it trains the cells of one job."""

    build_model: Callable[[], nn.Module]
    dataset: Dataset
    estimators: Mapping[str, Estimator]
    optimizers: Mapping[str, MakeOptimizer]
    quantization: Quantization
    training: TrainConfig

    def __call__(self, job: AtlasJob) -> Mapping[str, Cell]:
        training = replace(self.training, steps=job.steps, seed=job.seed)
        return train_cells(
            self.build_model,
            self.dataset.train_batches(training.batch_size, training.shuffle, job.seed, CPU),
            loss=F.cross_entropy,
            estimators={name: self.estimators[name] for name in job.cells},
            optimizer=self.optimizers[job.optimizer],
            lr=job.lr,
            quantization=self.quantization,
            training=training,
            test=self.dataset.test_batches(CPU),
        )


@dataclass(frozen=True)
class Grid:
    """The jobs of an atlas and its folder; ``lrs`` holds the larger and the smaller learning rate by optimizer."""

    jobs: list[AtlasJob]
    training: CellTraining
    folder: Path
    workers: int
    lrs: dict[str, tuple[float, float]]
    settings: dict[str, Any]


def grid_of(overrides: list[str]) -> Grid:
    """The grid of ``atlas.yaml`` with these overrides.

    Raises:
        ConfigError: with the problems of all entries.
        Exception: one of ``COMPOSE_ERRORS``, for an override outside the entries.
    """
    cfg = compose_file(config_dir(), overrides, "atlas", return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    cfg.runtime.device = "cpu"
    components = checked(cfg, choices)
    search = [override for override in overrides if override.startswith(SEARCH_PATH)]
    entries = {
        group: [
            Entry(f"atlas.{group}s", group, text, cfg, choices, search)
            for text in dict.fromkeys(cfg.atlas[f"{group}s"])
        ]
        for group in ("estimator", "optimizer")
    }
    problems = [problem for group in entries.values() for entry in group for problem in entry.problems]
    if problems:
        raise ConfigError(problems)
    components.dataset.prepare()
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    atlas = plain["atlas"]
    shared = {
        "data": components.dataset.fingerprint,
        "model": plain["model"],
        "quantizer": plain["quantizer"],
        "train": {key: plain["train"][key] for key in TRAIN_KEYS},
    }
    shared |= components.files
    if atlas["segment"] is not None:  # cells without segments stay those of earlier versions
        shared["segment"] = atlas["segment"]
    estimators, optimizers = (by_label(group) for group in entries.values())
    jobs = [
        AtlasJob(steps, _cells(estimators, optimizer.node, shared, seed=seed, lr=lr, steps=steps), label, seed, lr)
        for seed in dict.fromkeys(atlas["seeds"])
        for divisor in (1, atlas["smaller"])
        for steps in (atlas["steps"] * divisor,)
        for label, optimizer in optimizers.items()
        for lr in (optimizer.node["lr"] / divisor,)
    ]
    training = CellTraining(
        components.build_model,
        components.dataset,
        {label: entry.components.estimator for label, entry in estimators.items()},
        {label: entry.components.optimizer for label, entry in optimizers.items()},
        components.quantization,
        TrainConfig(**shared["train"], segment=atlas["segment"]),
    )
    lrs = {label: (entry.node["lr"], entry.node["lr"] / atlas["smaller"]) for label, entry in optimizers.items()}
    workers = worker_count(atlas["workers"], len(jobs))
    return Grid(jobs, training, home_path(atlas["output"]), workers, lrs, {**shared, "atlas": atlas})


def _cells(
    estimators: Mapping[str, Entry], optimizer: dict[str, Any], shared: dict[str, Any], **settings: float
) -> dict[str, dict[str, Any]]:
    node = {key: value for key, value in optimizer.items() if key != "lr"}
    return {label: {**shared, "optimizer": node, "estimator": e.node, **settings} for label, e in estimators.items()}


def collect(jobs: Sequence[AtlasJob], folder: Path) -> list[dict[str, Any]]:
    """All cells with their places in the grid; missing cells have the fault "was not trained"."""
    absent, files = {"fault": "was not trained"}, CellFiles(folder)
    return [
        {"estimator": name, "optimizer": job.optimizer, "seed": job.seed, "lr": job.lr, "steps": job.steps}
        | asdict(Cell())  # cells of earlier versions lack newer keys
        | (files.cell(config) or absent)
        for job in jobs
        for name, config in job.cells.items()
    ]

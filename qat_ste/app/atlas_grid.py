"""Turns a configuration into the jobs of an atlas; reports every problem of the entries before training."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat_ste.app.atlas_jobs import Job
from qat_ste.app.compose import COMPOSE_ERRORS, compose_file, composition_problems, config_dir, packaged_default
from qat_ste.app.schema import ConfigError
from qat_ste.app.validate import RunComponents, RunValidator
from qat_ste.base.files import home_path
from qat_ste.base.sections import Quantization, TrainConfig
from qat_ste.data.dataset import Dataset
from qat_ste.estimators import Estimator
from qat_ste.experiment.many_estimators import Cell, train_cells
from qat_ste.optimizers import MakeOptimizer

TRAIN_KEYS = ("batch_size", "shuffle", "schedule", "warmup", "l2", "l2_include")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CellTraining:
    """What all jobs share; calling it trains the cells of one job."""

    build_model: Callable[[], nn.Module]
    dataset: Dataset
    estimators: Mapping[str, Estimator]
    optimizers: Mapping[str, MakeOptimizer]
    quantization: Quantization
    training: TrainConfig

    def __call__(self, job: Job) -> Mapping[str, Cell]:
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

    jobs: list[Job]
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
    components = _checked(cfg, choices)
    entries = {
        group: [_Entry(group, text, overrides, choices) for text in dict.fromkeys(cfg.atlas[f"{group}s"])]
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
    estimators, optimizers = (_by_label(group) for group in entries.values())
    jobs = [
        Job(label, seed, lr, steps, _cells(estimators, optimizer.node, shared, seed=seed, lr=lr, steps=steps))
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(atlas["workers"] or cores, len(jobs))
    return Grid(jobs, training, home_path(atlas["output"]), workers, lrs, {**shared, "atlas": atlas})


class _Entry:
    """One option of a group with overrides ("cosine estimator.a=1"), composed and checked."""

    def __init__(self, group: str, text: str, overrides: list[str], choices: dict[str, Any]) -> None:
        self.text, self.problems = text, list[str]()
        self.name, *changes = text.split() or [""]
        self.changes = [change.removeprefix(f"{group}.") for change in changes]
        valid = list(overrides)
        for added in ([f"{group}={self.name}"], changes):
            try:
                cfg = compose_file(config_dir(), [*valid, *added], "atlas")
            except COMPOSE_ERRORS as error:
                problems = composition_problems(config_dir(), added, error, "atlas", valid)
                self._add(group, [problem.removeprefix(f"{group}={text}: ") for problem in problems])
                return
            valid += added
        self.node: dict[str, Any] = OmegaConf.to_container(cfg[group], resolve=True)  # type: ignore[assignment]
        try:
            self.components = _checked(cfg, choices | {group: self.name})
        except ConfigError as error:
            self._add(group, error.problems)

    def _add(self, group: str, problems: Sequence[Any]) -> None:
        self.problems = [f"atlas.{group}s=[{self.text}]: {problem}" for problem in problems]


def _checked(cfg: DictConfig, choices: dict[str, Any]) -> RunComponents:
    """Raises ConfigError. Accepts estimators that the theorem does not cover; their cells give the reason."""
    cfg = cfg.copy()
    cfg.counterparts = ["naive", "jitter"]
    cfg.runtime.device = "cpu"
    return RunValidator(cfg, packaged_default(config_dir(), choices)).components()


def _by_label(entries: list[_Entry]) -> dict[str, _Entry]:
    """Entries by name and changes, with the learning rate only if nothing else tells them apart."""
    short = [", ".join([e.name, *(c for c in e.changes if not c.startswith("lr="))]) for e in entries]
    counts = Counter(short)
    labels = [
        label if counts[label] == 1 else ", ".join([entry.name, *entry.changes])
        for label, entry in zip(short, entries, strict=True)
    ]
    return dict(zip(labels, entries, strict=True))


def _cells(
    estimators: Mapping[str, _Entry], optimizer: dict[str, Any], shared: dict[str, Any], **settings: float
) -> dict[str, dict[str, Any]]:
    node = {key: value for key, value in optimizer.items() if key != "lr"}
    return {label: {**shared, "optimizer": node, "estimator": e.node, **settings} for label, e in estimators.items()}

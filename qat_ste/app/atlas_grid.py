"""From a configuration to the jobs of an atlas, with every fault of an entry found before anything is trained."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat_ste.app.atlas_jobs import Job
from qat_ste.app.compose import COMPOSE_ERRORS, compose_file, composition_problems, config_dir, packaged_default
from qat_ste.app.schema import ConfigError
from qat_ste.app.validate import Parts, Preparation
from qat_ste.data.dataset import Dataset
from qat_ste.estimators import Estimator
from qat_ste.experiment.gradient_update import L2Penalty
from qat_ste.experiment.many_estimators import Cell, train_cells
from qat_ste.optimizers import MakeOptimizer
from qat_ste.optimizers.schedules import by_name

OF_TRAINING = ("batch_size", "shuffle", "schedule", "warmup", "l2", "l2_include")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """What all jobs share; trains the cells of one."""

    build_model: Callable[[], nn.Module]
    dataset: Dataset
    estimators: Mapping[str, Estimator]
    optimizers: Mapping[str, MakeOptimizer]
    quantizer: Mapping[str, Any]
    train: Mapping[str, Any]

    def __call__(self, job: Job) -> Mapping[str, Cell]:
        train = self.train
        return train_cells(
            self.build_model,
            self.dataset.train_batches(train["batch_size"], train["shuffle"], job.seed, CPU),
            loss=F.cross_entropy,
            estimators={name: self.estimators[name] for name in job.cells},
            optimizer=self.optimizers[job.optimizer],
            lr=job.lr,
            steps=job.steps,
            test=self.dataset.test_batches(CPU),
            schedule=by_name(train["schedule"], job.steps, train["warmup"]),
            l2=L2Penalty(train["l2"], tuple(train["l2_include"])) if train["l2"] else None,
            seed=job.seed,
            **self.quantizer,
        )


@dataclass(frozen=True)
class Grid:
    """All that an atlas trains, and where to. ``lrs``: by optimizer, the larger and the smaller learning rate."""

    jobs: list[Job]
    training: Training
    folder: Path
    workers: int
    lrs: dict[str, tuple[float, float]]
    settings: dict[str, Any]


def grid_of(overrides: list[str]) -> Grid:
    """The grid of ``atlas.yaml`` with these overrides.

    Raises:
        ConfigError: with what is wrong in each entry.
        Exception: one of ``COMPOSE_ERRORS``, for an override that is no part of an entry.
    """
    cfg = compose_file(config_dir(), overrides, "atlas", return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    parts = _checked(cfg, choices)
    entries = {
        group: [_Entry(group, text, overrides, choices) for text in dict.fromkeys(cfg.atlas[f"{group}s"])]
        for group in ("estimator", "optimizer")
    }
    problems = [problem for found in entries.values() for entry in found for problem in entry.problems]
    if problems:
        raise ConfigError(problems)
    parts.dataset.prepare()
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    atlas = plain["atlas"]
    shared = {
        "data": parts.dataset.fingerprint,
        "model": plain["model"],
        "quantizer": plain["quantizer"],
        "train": {key: plain["train"][key] for key in OF_TRAINING},
    }
    estimators, optimizers = (_by_label(found) for found in entries.values())
    jobs = [
        Job(label, seed, lr, steps, _cells(estimators, optimizer.node, shared, seed=seed, lr=lr, steps=steps))
        for seed in dict.fromkeys(atlas["seeds"])
        for divisor in (1, atlas["smaller"])
        for steps in (atlas["steps"] * divisor,)
        for label, optimizer in optimizers.items()
        for lr in (optimizer.node["lr"] / divisor,)
    ]
    training = Training(
        parts.build_model,
        parts.dataset,
        {label: entry.parts.estimator for label, entry in estimators.items()},
        {label: entry.parts.optimizer for label, entry in optimizers.items()},
        plain["quantizer"],
        shared["train"],
    )
    lrs = {label: (entry.node["lr"], entry.node["lr"] / atlas["smaller"]) for label, entry in optimizers.items()}
    workers = min(atlas["workers"] or _cores(), len(jobs))
    return Grid(jobs, training, Path(atlas["output"]), workers, lrs, {**shared, "atlas": atlas})


class _Entry:
    """One option of a group with overrides ("cosine estimator.a=1"), composed and checked."""

    def __init__(self, group: str, text: str, overrides: list[str], choices: dict[str, Any]) -> None:
        self.text, self.problems = text, list[str]()
        self.name, *own = text.split() or [""]
        self.changes = [change.removeprefix(f"{group}.") for change in own]
        sound = list(overrides)
        for given in ([f"{group}={self.name}"], own):
            try:
                cfg = compose_file(config_dir(), [*sound, *given], "atlas")
            except COMPOSE_ERRORS as error:
                found = composition_problems(config_dir(), given, error, "atlas", sound)
                self._tell(group, [problem.removeprefix(f"{group}={text}: ") for problem in found])
                return
            sound += given
        self.node: dict[str, Any] = OmegaConf.to_container(cfg[group], resolve=True)  # type: ignore[assignment]
        try:
            self.parts = _checked(cfg, choices | {group: self.name})
        except ConfigError as error:
            self._tell(group, error.problems)

    def _tell(self, group: str, problems: Sequence[Any]) -> None:
        self.problems = [f"atlas.{group}s=[{self.text}]: {problem}" for problem in problems]


def _checked(cfg: DictConfig, choices: dict[str, Any]) -> Parts:
    """Raises ConfigError. Where the theorem cannot apply is no fault: the cell tells."""
    cfg = cfg.copy()
    cfg.counterparts = ["naive", "jitter"]
    cfg.runtime.device = "cpu"
    return Preparation(cfg, packaged_default(config_dir(), choices)).parts()


def _by_label(entries: list[_Entry]) -> dict[str, _Entry]:
    """By name and changes, but for the learning rate where that is not needed to tell entries apart."""
    short = [", ".join([e.name, *(c for c in e.changes if not c.startswith("lr="))]) for e in entries]
    counts = Counter(short)
    labels = [
        label if counts[label] == 1 else ", ".join([entry.name, *entry.changes])
        for label, entry in zip(short, entries, strict=True)
    ]
    return dict(zip(labels, entries, strict=True))


def _cells(
    estimators: Mapping[str, _Entry], optimizer: dict[str, Any], shared: dict[str, Any], **own: float
) -> dict[str, dict[str, Any]]:
    node = {key: value for key, value in optimizer.items() if key != "lr"}
    return {label: {**shared, "optimizer": node, "estimator": e.node, **own} for label, e in estimators.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

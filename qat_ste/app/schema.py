"""What the runner owns of a configuration: its schema, and one place that finds everything wrong with it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.base.errors import BITS, COUNT, POSITIVE, SEED, STEPS, Bounds
from qat_ste.base.text import shown

LONGEST_SCALE = 10_000  # of the packaged length


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration, told in one line."""

    key: str
    value: Any
    allowed: str
    example: str

    def __str__(self) -> str:
        example = f"{self.key}={self.example}"
        example = shlex.quote(example) if " " in example else example
        return f"{self.key}={shown(self.value)}: {shown(self.allowed, 500)}; for example {example}"


class ConfigError(Exception):
    """All the problems of a configuration; each is a line of the message."""

    def __init__(self, problems: list[Any]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def _checked(test: Callable[[Any], bool], allowed: str, example: str) -> Any:
    return field(default=MISSING, metadata={"test": test, "allowed": allowed, "example": example})


def _one_of(*names: str) -> Any:
    return _checked(lambda value: value in names, f"must be one of {', '.join(names)}", names[0])


def _within(bounds: Bounds, example: str) -> Any:
    return _checked(lambda value: value in bounds, f"must be {bounds}", example)


def _optional(bounds: Bounds, example: str) -> Any:
    return _checked(lambda value: value is None or value in bounds, f"must be null or {bounds}", example)


def _names(example: str) -> Any:
    return _checked(lambda value: all(isinstance(name, str) for name in value), "must be a list of text", example)


def _path(example: str) -> Any:
    def test(value: str) -> bool:
        parts = os.fsencode(value).split(b"/")
        return bool(value.strip()) and "\0" not in value and max(map(len, parts)) <= 255

    return _checked(test, "must be a path, no part of it longer than 255 bytes", example)


class _Section:
    """Checks its fields by their metadata."""

    def __post_init__(self) -> None:
        problems = [
            Problem(field.name, getattr(self, field.name), field.metadata["allowed"], field.metadata["example"])
            for field in fields(self)  # type: ignore[arg-type]
            if field.metadata and not field.metadata["test"](getattr(self, field.name))
        ]
        if problems:
            raise ConfigError(problems)


@dataclass
class QuantizerConfig(_Section):
    """Which weights are quantized and how."""

    bits: int = _within(BITS, "2")
    levels: Any = MISSING
    saturation: str = _one_of("range", "bin", "none")
    include: list[str] = _names("[Conv2d]")  # noqa: RUF009
    exclude: list[str] = _names("[]")  # noqa: RUF009
    biases: bool = MISSING


@dataclass
class TrainConfig(_Section):
    """Length, order and schedule of training."""

    steps: int = _within(STEPS, "1500")
    epochs: int | None = _optional(STEPS, "10")
    steps_per_epoch: int | None = _optional(COUNT, "100")
    length_scale: float = _checked(
        lambda value: 0 < value <= LONGEST_SCALE, f"must be a positive number of at most {LONGEST_SCALE}", "1"
    )
    lr_scale: float = _within(POSITIVE, "1")
    share: float = _checked(lambda value: 0 < value <= 1, "must be a share of the length, above 0 and up to 1", "0.1")
    batch_size: int = _within(COUNT, "64")
    shuffle: bool = MISSING
    schedule: str = _one_of("cosine", "constant", "step")
    warmup: float = _checked(lambda value: 0 <= value < 1, "must be a share of the steps, from 0 to below 1", "0.02")
    clip_norm: float | None = _optional(POSITIVE, "1")
    clip_at: str = _one_of("latent", "quantized")
    l2: float = _checked(lambda value: 0 <= value < math.inf, "must be a finite number of at least 0", "1e-4")
    weight_decay: float = _checked(lambda value: 0 <= value < math.inf, "must be a finite number of at least 0", "1e-2")
    l2_include: list[str] = _names('["*"]')  # noqa: RUF009
    accumulate: int = _within(COUNT, "1")
    seed: int = _within(SEED, "42")


@dataclass
class MetricsConfig(_Section):
    """How often and on how many weights is measured."""

    every: int | None = _optional(COUNT, "10")
    sequence_weights: int = _within(COUNT, "1000000")


@dataclass
class RuntimeConfig(_Section):
    """Where it runs."""

    device: str = MISSING
    devices: int = _within(Bounds(1, 256), "1")
    placement: str = _one_of("together", "spread")
    precision: str = _one_of("fp32", "bf16")
    tf32: bool = MISSING
    execution: str = _one_of("auto", "eager", "compile", "graph")
    sync_batchnorm: bool = MISSING
    threads: int | None = _optional(Bounds(1, 1024), "2")
    line_seconds: float = _within(POSITIVE, "5")


@dataclass
class CheckpointConfig(_Section):
    """When a checkpoint is written, and how many of the last are kept."""

    every_steps: int | None = _optional(COUNT, "1000")
    every_seconds: float | None = _optional(POSITIVE, "600")
    keep: int = _within(Bounds(1, 100), "2")


@dataclass
class PathsConfig(_Section):
    """Folders."""

    data: str = _path("data")
    output: str = _path("outputs")


@dataclass
class AtlasConfig(_Section):
    """The grid of ``qat-atlas``."""

    estimators: list[str] = _checked(bool, "must be options of estimator, at least one", "[tanh]")  # noqa: RUF009
    optimizers: list[str] = _checked(bool, "must be options of optimizer, at least one", "[sgd]")  # noqa: RUF009
    seeds: list[int] = _checked(  # noqa: RUF009
        lambda seeds: bool(seeds) and all(seed in SEED for seed in seeds),
        f"must be whole numbers from {SEED.lowest} to {SEED.highest}, at least one",
        "[1,2,3]",
    )
    steps: int = _within(STEPS, "200")
    smaller: int = _within(Bounds(2), "5")
    workers: int | None = _optional(Bounds(1, 1024), "2")
    output: str = _path("outputs/atlas")


@dataclass
class RunConfig:
    """The whole configuration. The last five are open sets: any ``_target_`` with its arguments."""

    quantizer: QuantizerConfig = MISSING
    train: TrainConfig = MISSING
    metrics: MetricsConfig = MISSING
    runtime: RuntimeConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    paths: PathsConfig = MISSING
    counterparts: list[str] = MISSING
    dry_run: bool = False
    dataset: Any = MISSING
    model: Any = MISSING
    estimator: Any = MISSING
    optimizer: Any = MISSING
    logger: Any = MISSING


@dataclass
class AtlasRunConfig(RunConfig):
    """What ``qat-atlas`` composes; of the rest of ``RunConfig`` the cells take data, model, quantizer and training."""

    atlas: AtlasConfig = MISSING


SECTIONS = ("quantizer", "train", "metrics", "runtime", "checkpoint", "paths")


def problems_in(cfg: DictConfig, section: str) -> list[Problem]:
    """Every fault in one section that the runner owns; none where a value leads nowhere, which is told by itself."""
    try:
        OmegaConf.to_object(cfg[section])
    except ConfigError as error:
        return [Problem(f"{section}.{p.key}", p.value, p.allowed, p.example) for p in error.problems]
    except OmegaConfBaseException:
        pass
    return []


def section_problems(cfg: DictConfig) -> list[Problem]:
    """Every fault in the sections that the runner owns, and in the learning rate."""
    sections = (*SECTIONS, *(["atlas"] if "atlas" in cfg else []))
    problems = [problem for section in sections for problem in problems_in(cfg, section)]
    lr = cfg.optimizer.get("lr")
    if lr not in POSITIVE:
        problems.append(Problem("optimizer.lr", lr, f"must be {POSITIVE}", "0.003"))
    elif not problems and lr * cfg.train.lr_scale not in POSITIVE:
        problems.append(Problem("train.lr_scale", cfg.train.lr_scale, f"times optimizer.lr must be {POSITIVE}", "1"))
    return problems


def length(train: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the run: whole epochs, at least one, where it is counted in them."""
    scale = train.length_scale * train.share
    if train.epochs is None:
        return max(1, round(train.steps * scale))
    return max(1, round(train.epochs * scale)) * steps_per_epoch

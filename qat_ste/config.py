"""What the runner owns of a configuration: its schema, and one place that finds everything wrong with it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf


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
        return f"{self.key}={_shown(self.value)}: {self.allowed}; for example {example}"


class ConfigError(Exception):
    """All the problems of a configuration; each is a line of the message."""

    def __init__(self, problems: list[Any]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shown(item)}" for key, item in value.items()) + "}"
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def _checked(test: Callable[[Any], bool], allowed: str, example: str) -> Any:
    return field(default=MISSING, metadata={"test": test, "allowed": allowed, "example": example})


def _one_of(*names: str) -> Any:
    return _checked(lambda value: value in names, f"must be one of {', '.join(names)}", names[0])


def _optional(minimum: int, example: str) -> Any:
    return _checked(
        lambda v: v is None or v >= minimum, f"must be null or a whole number of at least {minimum}", example
    )


def _positive(example: str) -> Any:
    return _checked(lambda value: 0 < value < math.inf, "must be a positive finite number", example)


def _at_least(minimum: int, example: str) -> Any:
    return _checked(lambda value: value >= minimum, f"must be a whole number of at least {minimum}", example)


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

    bits: int = _checked(lambda value: 1 <= value <= 16, "must be a whole number from 1 to 16", "2")
    levels: Any = MISSING
    saturation: str = _one_of("range", "bin", "none")
    include: list[str] = MISSING
    exclude: list[str] = MISSING
    biases: bool = MISSING


@dataclass
class TrainConfig(_Section):
    """Length, order and schedule of training."""

    steps: int = _at_least(1, "1500")
    epochs: int | None = _optional(1, "10")
    steps_per_epoch: int | None = _optional(1, "100")
    length_scale: float = _positive("1")
    lr_scale: float = _positive("1")
    share: float = _checked(lambda value: 0 < value <= 1, "must be a share of the length, above 0 and up to 1", "0.1")
    batch_size: int = _at_least(1, "64")
    shuffle: bool = MISSING
    schedule: str = _one_of("cosine", "constant", "step")
    warmup: float = _checked(lambda value: 0 <= value < 1, "must be a share of the steps, from 0 to below 1", "0.02")
    clip_norm: float | None = _checked(
        lambda v: v is None or 0 < v < math.inf, "must be null or a positive finite number", "1"
    )
    clip_at: str = _one_of("latent", "quantized")
    l2: float = _checked(lambda value: 0 <= value < math.inf, "must be a finite number of at least 0", "1e-4")
    weight_decay: float = _checked(lambda value: 0 <= value < math.inf, "must be a finite number of at least 0", "1e-2")
    l2_include: list[str] = MISSING
    accumulate: int = _at_least(1, "1")
    seed: int = _checked(lambda value: 0 <= value < 2**32, "must be a whole number from 0 to 4294967295", "42")


@dataclass
class MetricsConfig(_Section):
    """How often and on how many weights is measured."""

    every: int | None = _optional(1, "10")
    sequence_weights: int = _at_least(1, "1000000")


@dataclass
class RuntimeConfig(_Section):
    """Where it runs."""

    device: str = MISSING
    devices: int = _at_least(1, "1")
    placement: str = _one_of("together", "spread")
    precision: str = _one_of("fp32", "bf16")
    tf32: bool = MISSING
    execution: str = _one_of("auto", "eager", "compile", "graph")
    sync_batchnorm: bool = MISSING
    threads: int | None = _optional(1, "2")
    line_seconds: float = _positive("5")


@dataclass
class CheckpointConfig(_Section):
    """When a checkpoint is written, and how many of the last are kept."""

    every_steps: int | None = _optional(1, "1000")
    every_seconds: float | None = _checked(
        lambda v: v is None or 0 < v < math.inf, "must be null or a positive number of seconds", "600"
    )
    keep: int = _at_least(1, "2")


@dataclass
class PathsConfig:
    """Folders."""

    data: str = MISSING
    output: str = MISSING


@dataclass
class AtlasConfig(_Section):
    """The grid of ``qat-atlas``."""

    estimators: list[str] = _checked(bool, "must be options of estimator, at least one", "[tanh]")  # noqa: RUF009
    optimizers: list[str] = _checked(bool, "must be options of optimizer, at least one", "[sgd]")  # noqa: RUF009
    seeds: list[int] = _checked(  # noqa: RUF009
        lambda seeds: bool(seeds) and all(0 <= seed < 2**32 for seed in seeds),
        "must be whole numbers from 0 to 4294967295, at least one",
        "[1,2,3]",
    )
    steps: int = _at_least(1, "200")
    smaller: int = _at_least(2, "5")
    workers: int | None = _optional(1, "2")
    output: str = MISSING


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


SECTIONS = ("quantizer", "train", "metrics", "runtime", "checkpoint")


def section_problems(cfg: DictConfig) -> list[Problem]:
    """Every fault in the sections that the runner owns."""
    problems = []
    for name in (*SECTIONS, *(["atlas"] if "atlas" in cfg else [])):
        try:
            OmegaConf.to_object(cfg[name])
        except ConfigError as error:
            problems += [Problem(f"{name}.{p.key}", p.value, p.allowed, p.example) for p in error.problems]
    lr = cfg.optimizer.get("lr")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < math.inf:
        problems.append(Problem("optimizer.lr", lr, "must be a positive finite number", "0.003"))
    return problems


def length(train: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the run: whole epochs, at least one, where it is counted in them."""
    scale = train.length_scale * train.share
    if train.epochs is None:
        return max(1, round(train.steps * scale))
    return max(1, round(train.epochs * scale)) * steps_per_epoch

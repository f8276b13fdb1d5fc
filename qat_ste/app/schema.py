"""The schema of the configuration: the library's parameter objects and the keys of the command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.base.errors import POSITIVE, ArgumentError
from qat_ste.base.grid_sections import AtlasConfig, TuneConfig
from qat_ste.base.sections import (
    DEFAULT_COUNTERPARTS,
    SECTIONS,
    CheckpointSchedule,
    Metrics,
    PathsConfig,
    Quantization,
    RuntimeConfig,
    TrainConfig,
)
from qat_ste.base.text import shown

MODEL_KEYS = {  # of every option of the group model; a configuration has them only where they are given
    "model.checkpoint": "start from this state_dict (.pt, .safetensors)",
    "model.rename": 'replace prefixes of its names: {module.: ""}',
}


@dataclass(frozen=True)
class Problem:
    """A problem of a configuration; ``str`` gives one line."""

    key: str
    value: Any
    allowed: str
    example: str

    def __str__(self) -> str:
        example = f"{self.key}={self.example}"
        example = shlex.quote(example) if " " in example else example
        return f"{self.key}={shown(self.value)}: {shown(self.allowed, 500)}; for example {example}"


class ConfigError(Exception):
    """All problems of a configuration, one per line of the message."""

    def __init__(self, problems: list[Any]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass
class RunConfig:
    """The whole configuration. The last five are open: any ``_target_`` with its arguments."""

    quantizer: Quantization = field(default_factory=Quantization)
    train: TrainConfig = field(default_factory=TrainConfig)
    metrics: Metrics = field(default_factory=Metrics)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointSchedule = field(default_factory=CheckpointSchedule)
    paths: PathsConfig = field(default_factory=PathsConfig)
    counterparts: list[str] = field(default_factory=lambda: list(DEFAULT_COUNTERPARTS))
    dry_run: bool = False
    dataset: Any = MISSING
    model: Any = MISSING
    estimator: Any = MISSING
    optimizer: Any = MISSING
    logger: Any = MISSING


@dataclass
class AtlasRunConfig(RunConfig):
    """The configuration of ``qat-atlas``."""

    atlas: AtlasConfig = field(default_factory=AtlasConfig)


@dataclass
class TuneRunConfig(RunConfig):
    """The configuration of ``qat-tune``."""

    tune: TuneConfig = field(default_factory=TuneConfig)


def schema(kind: type[RunConfig]) -> DictConfig:
    """The typed node of ``kind``, made writable: OmegaConf makes frozen dataclasses read-only."""
    node: DictConfig = OmegaConf.structured(kind)
    for section in SECTIONS:
        if section in node:
            OmegaConf.set_readonly(node[section], None)
    return node


def added_schema(kind: type[RunConfig]) -> DictConfig:
    """The keys that ``kind`` adds to the schema of ``qat-run``."""
    node = schema(kind)
    for key in RunConfig.__dataclass_fields__:
        node[key] = MISSING  # so that merging this node changes none of them
    return node


def parameters(cfg: DictConfig, section: str) -> Any:
    """The parameter object of a section that has no problems."""
    return SECTIONS[section](**OmegaConf.to_container(cfg[section], resolve=True))  # type: ignore[arg-type]


def problems_in(cfg: DictConfig, section: str) -> list[Problem]:
    """Every problem of one section; none if a value is unresolved, which ``unusable`` reports."""
    kind = SECTIONS[section]
    examples = {each.name: each.metadata.get("example") for each in fields(kind)}
    try:
        values: Any = OmegaConf.to_container(cfg[section], resolve=True)
    except OmegaConfBaseException:
        return []
    return [problem_of(f"{section}.{error.name}", error, examples[error.name]) for error in kind.errors(values)]


def problem_of(key: str, error: ArgumentError, example: Any) -> Problem:
    """Turns an ``ArgumentError`` into a problem with this key."""
    return Problem(key, error.value, f"must be {error.allowed.replace('None or', 'null or')}", shown(example))


def section_problems(cfg: DictConfig) -> list[Problem]:
    """Every problem of the sections and of the learning rate."""
    problems = [problem for section in SECTIONS if section in cfg for problem in problems_in(cfg, section)]
    lr = cfg.optimizer.get("lr")
    if lr not in POSITIVE:
        problems.append(Problem("optimizer.lr", lr, f"must be {POSITIVE}", "0.003"))
    elif not problems and lr * cfg.train.lr_scale not in POSITIVE:
        problems.append(Problem("train.lr_scale", cfg.train.lr_scale, f"times optimizer.lr must be {POSITIVE}", "1"))
    return problems

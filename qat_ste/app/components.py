"""Instantiates the ``_target_`` of each group; if that fails, finds the invalid key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from qat_ste.app.schema import ConfigError, Problem, section_problems
from qat_ste.app.value_checks import OPEN, expand_home, reset_to_default, unusable, wrong_types
from qat_ste.base.errors import ArgumentError
from qat_ste.base.text import shown
from qat_ste.estimators import Estimator
from qat_ste.optimizers import MakeOptimizer

T = TypeVar("T")
UNLOCATED = ("Error locating", "Error loading", "Expected a callable", "Empty path")  # in errors of Hydra


def make_estimator(node: DictConfig) -> Estimator:
    """The estimator of this node; errors of its class pass through."""
    estimator = instantiate(node)
    if not isinstance(estimator, Estimator):
        raise TypeError("_target_ must make an Estimator")
    return estimator


class _Accepted(Exception):
    """The optimizer accepted its arguments and asked for its parameters."""


def make_optimizer(node: DictConfig) -> MakeOptimizer:
    """A function of parameter groups and ``lr``, its other arguments checked; errors of its class pass through."""

    def groups() -> Iterator[dict[str, Any]]:  # at the first group torch imports its compiler, which takes 1.2 s
        raise _Accepted
        yield

    arguments: Any = OmegaConf.to_container(node, resolve=True)
    lr = arguments.pop("lr", None)
    make: MakeOptimizer = instantiate(arguments, _convert_="all")
    with suppress(_Accepted):
        made_optimizer(make, groups(), lr)
    return make


def made_optimizer(make: MakeOptimizer, groups: Iterable[dict[str, Any]], lr: float) -> Optimizer:
    """The optimizer of these parameter groups.

    Raises:
        TypeError: ``make`` returns no optimizer.
    """
    made = make(groups, lr=lr)
    if not isinstance(made, Optimizer):
        raise TypeError("_target_ must make a torch.optim.Optimizer")
    return made


def make_logger(node: DictConfig) -> Callable[..., Any] | None:
    """A function of folder, name and config; None without a logger."""
    make = instantiate(node) if node.get("_target_") else None
    if make is not None and not callable(make):
        raise TypeError("_target_ must make a function of folder, name and config")
    return make


class ComponentBuilder:
    """Builds components from a configuration and collects its problems; invalid values get their packaged default.

    Args:
        default: returns the packaged value of a key ("estimator.k"), for examples in messages.
        problems: earlier problems, to report first.

    Raises:
        ConfigError: a group has no keys.
    """

    def __init__(
        self, cfg: DictConfig, default: Callable[[str], Any] = lambda key: None, problems: Sequence[Any] = ()
    ) -> None:
        self.cfg, self._default, self.problems = cfg.copy(), default, list(problems)
        OmegaConf.set_struct(self.cfg, False)
        for find in (unusable, lambda cfg, _: section_problems(cfg), wrong_types):
            new = find(self.cfg, default)
            self.problems += new
            if not all(isinstance(self.cfg._get_node(group), DictConfig) and self.cfg[group] for group in OPEN):
                raise ConfigError(self.problems)
            reset_to_default(self.cfg, new, default)
        expand_home(self.cfg)

    def add(self, key: str, allowed: str, example: Any = None) -> None:
        """Adds a problem with a key, one per key; the example is the packaged default unless given."""
        if not any(getattr(problem, "key", None) == key for problem in self.problems):
            example = shown(self._default(key)) if example is None else example
            value = OmegaConf.select(self.cfg, key)
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            self.problems.append(Problem(key, value, allowed, example))

    def build(self, group: str, make: Callable[[DictConfig], T] = instantiate, attempt: str = "") -> T | None:
        """What ``make`` returns for the group; None if it raises, after adding the problem.

        Args:
            attempt: what failed ("cannot train this network: "), for errors without a key.
        """
        try:
            return make(self.cfg[group])
        except Exception as error:  # a foreign target may raise anything
            self._add_error(group, error, make, attempt)
            return None

    def _add_error(self, group: str, error: Exception, make: Callable[[DictConfig], object], attempt: str) -> None:
        cause = error.__cause__ or error
        text = " ".join(str(cause).split()).partition(", set env var")[0]
        if isinstance(cause, ArgumentError) and cause.name in self.cfg[group]:
            self.add(f"{group}.{cause.name}", f"must be {cause.allowed}")
        elif text.startswith(UNLOCATED):
            self.add(f"{group}._target_", text)
        elif culprit := self._culprit(group, cause, make):
            self.add(f"{group}.{culprit}", f"{attempt}{text}")
        elif group == "dataset" and "root" in self.cfg.dataset:
            root: Any = OmegaConf.to_container(self.cfg.dataset, resolve=False)
            key = "paths.data" if root["root"] == "${paths.data}" else "dataset.root"
            self.add(key, text, "DIR_WITH_THE_FILES")
        else:
            self.problems.append(shown(f"{group}: {attempt}{text}", 500))

    def _culprit(self, group: str, error: BaseException, make: Callable[[DictConfig], object]) -> str | None:
        """The argument whose packaged value removes the error; None for an OSError."""
        node: Any = OmegaConf.to_container(self.cfg[group], resolve=False)
        packaged = self._default(f"{group}._target_") is not None
        for name in sorted(node, key="_target_".__eq__) if packaged and not isinstance(error, OSError) else ():
            usual = self._default(f"{group}.{name}")
            if usual == node[name]:
                continue
            trial = self.cfg[group].copy()
            trial[name] = usual
            with suppress(Exception):
                make(trial)
                return str(name)
        return None

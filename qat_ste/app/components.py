"""Builds the ``_target_`` of each group; when that fails, finds the key at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from qat_ste.app.schema import ConfigError, Problem, section_problems
from qat_ste.app.values import OPEN, mend, of_another_kind, unusable
from qat_ste.base.text import shown
from qat_ste.estimators import Estimator
from qat_ste.optimizers import MakeOptimizer

UNLOCATED = ("Error locating", "Error loading", "Expected a callable", "Empty path")  # what Hydra says of a _target_


def make_estimator(node: DictConfig) -> Estimator:
    """Raises whatever a foreign class does."""
    estimator = instantiate(node)
    if not isinstance(estimator, Estimator):
        raise TypeError("_target_ must make an Estimator")
    return estimator


class _Accepted(Exception):
    """An optimizer has looked at its arguments, and goes on to its parameters."""


def make_optimizer(node: DictConfig) -> MakeOptimizer:
    """A function of parameter groups and ``lr``; its other arguments are tried. Raises whatever a foreign class does.

    Optimizers check their arguments first. At the first group of parameters torch imports its compiler, which takes
    1.2 s: too long for telling what else is wrong with a configuration.
    """

    def groups() -> Iterator[dict[str, Any]]:
        raise _Accepted
        yield

    arguments: Any = OmegaConf.to_container(node, resolve=True)
    lr = arguments.pop("lr", None)
    make: MakeOptimizer = instantiate(arguments, _convert_="all")
    with suppress(_Accepted):
        made_optimizer(make, groups(), lr)
    return make


def made_optimizer(make: MakeOptimizer, groups: Iterable[dict[str, Any]], lr: float) -> Optimizer:
    """The optimizer of these groups.

    Raises:
        TypeError: it is none.
    """
    made = make(groups, lr=lr)
    if not isinstance(made, Optimizer):
        raise TypeError("_target_ must make a torch.optim.Optimizer")
    return made


def make_logger(node: DictConfig) -> Callable[..., Any] | None:
    """A function of folder, name and config; None where nothing is logged to."""
    make = instantiate(node) if node.get("_target_") else None
    if make is not None and not callable(make):
        raise TypeError("_target_ must make a function of folder, name and config")
    return make


class ComponentBuilder:
    """A configuration whose values are looked at, and the problems found in it; what is wrong is mended meanwhile.

    Args:
        default: the packaged value of a key ("estimator.k"), for the example in a message.
        known: problems to be told with those found.

    Raises:
        ConfigError: a group is none.
    """

    def __init__(
        self, cfg: DictConfig, default: Callable[[str], Any] = lambda key: None, known: Sequence[Any] = ()
    ) -> None:
        self.cfg, self._default, self.problems = cfg.copy(), default, list(known)
        OmegaConf.set_struct(self.cfg, False)
        for find in (unusable, lambda cfg, _: section_problems(cfg), of_another_kind):
            found = find(self.cfg, default)
            self.problems += found
            if not all(isinstance(self.cfg._get_node(group), DictConfig) and self.cfg[group] for group in OPEN):
                raise ConfigError(self.problems)
            mend(self.cfg, found, default)

    def add(self, key: str, allowed: str, example: Any = None) -> None:
        """A problem with a key; its example is the packaged default unless given."""
        if not any(getattr(problem, "key", None) == key for problem in self.problems):
            example = shown(self._default(key)) if example is None else example
            value = OmegaConf.select(self.cfg, key)
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            self.problems.append(Problem(key, value, allowed, example))

    def refused(self, group: str, error: Exception, works: Callable[[DictConfig], object], what: str = "") -> None:
        """What a constructor said: our own start with the argument's name, of which the key is made.

        Args:
            works: fails with arguments that are not right.
            what: cannot be done; for where none of the arguments is at fault.
        """
        text = " ".join(str(error.__cause__ or error).split()).partition(", set env var")[0]
        argument = "_target_" if text.startswith(UNLOCATED) else text.split(" ")[0]
        if argument in self.cfg[group]:
            self.add(f"{group}.{argument}", text.removeprefix(argument).split(", got ")[0].strip())
        elif culprit := self._culprit(group, error.__cause__ or error, works):
            self.add(f"{group}.{culprit}", f"{what}{text}")
        elif group == "dataset" and "root" in self.cfg.dataset:
            own = OmegaConf.to_container(self.cfg.dataset, resolve=False)["root"] != "${paths.data}"  # type: ignore[call-overload, index]
            self.add("dataset.root" if own else "paths.data", text, "DIR_WITH_THE_FILES")
        else:
            self.problems.append(shown(f"{group}: {what}{text}", 500))

    def _culprit(self, group: str, error: BaseException, works: Callable[[DictConfig], object]) -> str | None:
        """The argument that is at fault: with its packaged value there is no error, which may not be of the disk."""
        node: Any = OmegaConf.to_container(self.cfg[group], resolve=False)
        packaged = self._default(f"{group}._target_") is not None
        for name in sorted(node, key="_target_".__eq__) if packaged and not isinstance(error, OSError) else ():
            usual = self._default(f"{group}.{name}")
            if usual == node[name]:
                continue
            trial = self.cfg[group].copy()
            trial[name] = usual
            with suppress(Exception):
                works(trial)
                return str(name)
        return None

    def build(self, group: str, made: Callable[[DictConfig], Any] = instantiate) -> Any:
        """What ``made`` makes of the group; None where it fails, and why is among the problems."""
        try:
            return made(self.cfg[group])
        except Exception as error:  # a foreign target may raise anything
            self.refused(group, error, made)
            return None

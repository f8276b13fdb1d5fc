"""Checks the values of all keys: missing, unresolved, too long, or of the wrong type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from qat_ste.app.schema import Problem
from qat_ste.base.files import home_path
from qat_ste.base.text import shown

Default = Callable[[str], Any]  # the packaged value of a key; None where there is none
OPEN = ("dataset", "model", "estimator", "optimizer", "logger")  # any _target_ with its arguments
LONGEST = 4096  # characters, as many as a path may have


@dataclass(frozen=True)
class _Unresolved:
    """The text of a value that cannot be resolved."""

    text: str
    allowed: str


def unusable(cfg: DictConfig, default: Default) -> list[Problem]:
    """Values that are missing, unresolved or too long; other checks fail on them."""
    problems = []
    for key, value in _leaves(cfg, default):
        if isinstance(value, _Unresolved):
            problems.append(Problem(key, value.text, value.allowed, shown(default(key))))
        elif any(isinstance(text, str) and len(text) > LONGEST for text in _flat(value)):
            problems.append(Problem(key, value, f"must have at most {LONGEST} characters", shown(default(key))))
    return problems


def wrong_types(cfg: DictConfig, default: Default) -> list[Problem]:
    """Arguments in the open groups that are not finite, or whose type differs from the packaged one."""
    problems = []
    for group in OPEN:
        custom_target = cfg[group].get("_target_") != default(f"{group}._target_")
        for key, value in _leaves(cfg[group], default, f"{group}."):
            usual = None if custom_target and not key.endswith("_target_") else default(key)
            if not _alike(value, usual) or (key.endswith("._target_") and not isinstance(value, str | None)):
                problems.append(Problem(key, value, f"must be {_kind(usual)}", shown(usual)))
            elif any(isinstance(number, float) and not math.isfinite(number) for number in _flat(value)):
                problems.append(Problem(key, value, "must be finite", shown(usual)))
    return problems


def reset_to_default(cfg: DictConfig, problems: Sequence[Problem], default: Default) -> None:
    """Replaces invalid values by the packaged ones, so that the others can be checked."""
    for problem in problems:
        with suppress(OmegaConfBaseException):  # there is no packaged value, and None is not allowed
            OmegaConf.update(cfg, problem.key, default(problem.key), merge=False, force_add=True)


def expand_home(cfg: DictConfig) -> None:
    """Replaces a leading ``~`` of the paths by the home folder: keys of ``paths``, and texts of ``dataset``."""
    for section in ("paths", "dataset"):
        for key, value in _leaves(cfg[section], lambda key: None, f"{section}."):
            if isinstance(value, str) and value.startswith("~"):
                OmegaConf.update(cfg, key, str(home_path(value)))


def _leaves(node: DictConfig, default: Default, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and plain values; a list is one value, and so is a dictionary if the packaged value is not one."""
    for name in node:
        key = f"{prefix}{name!s}"
        try:
            value = node[name]
            if isinstance(value, DictConfig) and value and (not prefix or isinstance(default(key), dict | None)):
                yield from _leaves(value, default, f"{key}.")
                continue
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue:
            value = _Unresolved("???", "must be given")
        except OmegaConfBaseException as error:
            raw = OmegaConf.to_container(node, resolve=False)
            text = raw[name] if isinstance(raw, dict) else None
            value = _Unresolved(shown(text), f"must lead to a key that is there ({str(error).splitlines()[0]})")
        yield key, value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _flat(child)
    else:
        yield value


def _alike(value: Any, usual: Any) -> bool:
    if usual is None:
        return True
    if isinstance(usual, list):
        return isinstance(value, list) and len(value) == len(usual) and all(map(_alike, value, usual))
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(usual, bool)
    if isinstance(usual, int | float):
        return isinstance(value, int | float)
    return isinstance(value, (dict,) if isinstance(usual, dict) else (str, int, float))  # numbers are text as well


def _kind(usual: Any) -> str:
    """How a message names the type of ``usual``."""
    if isinstance(usual, list):
        return f"a list of {len(usual)}"
    kinds = {bool: "true or false", int: "a number", float: "a number", dict: "a dictionary"}
    return kinds.get(type(usual), "text")

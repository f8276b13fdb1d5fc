"""Entries of a grid: options of a group with overrides ("cosine estimator.a=1"), composed and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qat_ste.app.compose import COMPOSE_ERRORS, compose_file, composition_problems, config_dir, packaged_default
from qat_ste.app.schema import ConfigError
from qat_ste.app.validate import RunComponents, RunValidator


class Entry:
    """An option of a group with overrides.

    Args:
        key: that holds the entry, for messages.
        base: the configuration that the option is a part of. Keys that it sets for another option are left out.
        choices: the option of each group there.
        search: overrides that make the user's options known.
    """

    def __init__(
        self, key: str, group: str, text: str, base: DictConfig, choices: dict[str, Any], search: list[str]
    ) -> None:
        self._key, self.text, self.problems = key, text, list[str]()
        self.name, *changes = text.split() or [""]
        self.changes = [change.removeprefix(f"{group}.") for change in changes]
        valid = list(search)
        for added in ([f"{group}={self.name}"], changes):
            try:
                cfg = compose_file(config_dir(), [*valid, *added])
            except COMPOSE_ERRORS as error:
                problems = composition_problems(config_dir(), added, error, "atlas", valid)
                self._add([problem.removeprefix(f"{group}={text}: ") for problem in problems])
                return
            valid += added
        whole = base.copy()
        if changes or self.name != choices[group]:
            whole[group] = cfg[group]
        self.node: dict[str, Any] = OmegaConf.to_container(whole[group], resolve=True)  # type: ignore[assignment]
        try:
            self.components = checked(whole, choices | {group: self.name})
        except ConfigError as error:
            self._add(error.problems)

    def _add(self, problems: Sequence[Any]) -> None:
        self.problems = [f"{self._key}=[{self.text}]: {problem}" for problem in problems]


def checked(cfg: DictConfig, choices: dict[str, Any]) -> RunComponents:
    """The components of a configuration; estimators that the theorem does not cover are accepted.

    Raises:
        ConfigError: with all problems.
    """
    cfg = cfg.copy()
    cfg.counterparts = ["naive", "jitter"]
    return RunValidator(cfg, packaged_default(config_dir(), choices)).components()


def by_label(entries: list[Entry]) -> dict[str, Entry]:
    """Entries by name and changes, with the learning rate only if nothing else tells them apart."""
    short = [", ".join([e.name, *(c for c in e.changes if not c.startswith("lr="))]) for e in entries]
    counts = Counter(short)
    labels = [
        label if counts[label] == 1 else ", ".join([entry.name, *entry.changes])
        for label, entry in zip(short, entries, strict=True)
    ]
    return dict(zip(labels, entries, strict=True))

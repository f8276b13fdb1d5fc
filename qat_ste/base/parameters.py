"""Frozen dataclasses that check their own fields: arguments in Python and sections of the configuration alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qat_ste.base.errors import ArgumentError, Rule


def parameter(default: Any, rule: Rule | None, about: str, example: Any = None) -> Any:
    """A field of ``Parameters``.

    Args:
        rule: which values are allowed; None: whoever uses the value checks it.
        about: one line for ``--help``.
        example: an allowed value for messages; the default unless given.
    """
    metadata = {"rule": rule, "about": about, "example": default if example is None else example}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class _Path:
    def __contains__(self, value: Any) -> bool:
        parts = os.fsencode(value).split(b"/")
        return bool(value.strip()) and "\0" not in value and max(map(len, parts)) <= 255

    def __str__(self) -> str:
        return "a path, no part of it longer than 255 bytes"


PATH = _Path()


@dataclass(frozen=True)
class Parameters:
    """Base of parameter objects. A field made by ``parameter`` needs no other line of code to be checked.

    Raises:
        ArgumentError: the first field whose value its rule does not allow.
    """

    def __post_init__(self) -> None:
        for error in self.errors(vars(self)):
            raise error

    @classmethod
    def errors(cls, values: Mapping[str, Any]) -> list[ArgumentError]:
        """One error for each of these values, by name of the field, that breaks its rule."""
        rules = {each.name: each.metadata["rule"] for each in fields(cls) if each.metadata.get("rule")}
        return [
            ArgumentError(name, values[name], rule)
            for name, rule in rules.items()
            if name in values and values[name] not in rule
        ]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each field, by name."""
        return vars(cls())

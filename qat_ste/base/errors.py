"""Rules for values, and the error for a value that breaks its rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

from qat_ste.base.text import of_value


class Rule(Protocol):
    """Which values are allowed; its text completes the sentence "lr must be …"."""

    def __contains__(self, value: Any) -> bool: ...

    def __str__(self) -> str: ...


class ArgumentError(ValueError):
    """An argument has a value that is not allowed.

    Attributes:
        name: of the argument.
        value: that was given.
        allowed: what the value must be, in words.
    """

    def __init__(self, name: str, value: Any, allowed: object) -> None:
        self.name, self.value, self.allowed = name, value, str(allowed)
        super().__init__(f"{name} must be {allowed}, got {of_value(value)}")

    def __reduce__(self) -> tuple[Any, ...]:  # exceptions are pickled by their message alone
        return type(self), (self.name, self.value, self.allowed)


@dataclass(frozen=True)
class Number:
    """Finite numbers from ``lowest`` to ``highest``; whole numbers only unless ``real``.

    ``above`` and ``below`` exclude the lowest and the highest number.
    """

    lowest: float = -math.inf
    highest: float = math.inf
    real: bool = False
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real if self.real else Integral):
            return False
        number: Any = value  # type checkers cannot compare abstract numbers
        inside: bool = self.lowest <= number <= self.highest and abs(number) < math.inf
        return inside and not (self.above and number == self.lowest) and not (self.below and number == self.highest)

    def __str__(self) -> str:
        if not self.real:
            end = "of at least {}" if self.highest == math.inf else "from {} to {}"
            return f"a whole number {end.format(self.lowest, self.highest)}"
        if self.highest == math.inf:
            if self.lowest == -math.inf:
                return "a finite number"
            if self.above:
                return f"a finite number above {self.lowest:g}" if self.lowest else "a positive finite number"
            return f"a finite number of at least {self.lowest:g}"
        if self.above and self.below:
            return f"a number between {self.lowest:g} and {self.highest:g}, both excluded"
        start = f"above {self.lowest:g}" if self.above else f"from {self.lowest:g}"
        return f"a number {start} {'to below' if self.below else 'up to'} {self.highest:g}"


@dataclass(frozen=True)
class OneOf:
    """One of these texts."""

    names: Sequence[str]

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"


@dataclass(frozen=True)
class Instance:
    """An instance of a class."""

    kind: type

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def __str__(self) -> str:
        if self.kind is bool:
            return "true or false"
        name = self.kind.__name__
        return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


@dataclass(frozen=True)
class ListOf:
    """A list or tuple whose items are instances of these classes."""

    kinds: tuple[type, ...]
    items: str
    least: int = 0

    def __contains__(self, value: Any) -> bool:
        sized = isinstance(value, list | tuple) and len(value) >= self.least
        return sized and all(isinstance(item, self.kinds) for item in value)

    def __str__(self) -> str:
        return f"a list of {self.items}" + (f", at least {self.least}" if self.least else "")


@dataclass(frozen=True)
class OrNone:
    """None, or what another rule allows."""

    rule: Rule

    def __contains__(self, value: Any) -> bool:
        return value is None or value in self.rule

    def __str__(self) -> str:
        return f"None or {self.rule}"


class _Function:
    def __contains__(self, value: Any) -> bool:
        return callable(value)

    def __str__(self) -> str:
        return "a function"


FUNCTION = _Function()
FLAG = Instance(bool)
POSITIVE = Number(0, real=True, above=True)
STRENGTH = Number(0, 1e6, real=True)  # of a decay
COUNT = Number(1)
STEPS = Number(1, 10**8)  # the loss of each member is kept for each step
BITS = Number(1, 16)
SEED = Number(0, 2**32 - 1)


def require(rule: Rule, **arguments: Any) -> None:
    """Raises ArgumentError for the first of these arguments that breaks the rule."""
    for name, value in arguments.items():
        if value not in rule:
            raise ArgumentError(name, value, rule)


def number(name: str, value: float, above: float = -math.inf, below: float = math.inf) -> float:
    """``value`` as a float.

    Raises:
        ArgumentError: it is not a number strictly between the bounds.
    """
    require(Number(above, below, real=True, above=True, below=True), **{name: value})
    return float(value)


def positive(name: str, value: float) -> float:
    """``value`` as a float.

    Raises:
        ArgumentError: it is not a positive finite number.
    """
    return number(name, value, above=0)

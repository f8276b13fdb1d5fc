"""Bounds of numeric arguments and keys, and the errors for values outside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """Numbers from ``lowest`` to ``highest``, both included unless ``open``; ``whole`` ones only."""

    lowest: float
    highest: float = math.inf
    whole: bool = True
    open: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value  # the abstract kinds of numbers cannot be compared, as far as types tell
        inside: bool = self.lowest < number < self.highest if self.open else self.lowest <= number <= self.highest
        return inside

    def __str__(self) -> str:
        if not self.whole:
            return "a positive finite number"
        if self.highest == math.inf:
            return f"a whole number of at least {self.lowest}"
        return f"a whole number from {self.lowest} to {self.highest}"


POSITIVE = Bounds(0, whole=False, open=True)
COUNT = Bounds(1)
STEPS = Bounds(1, 10**8)  # each member's loss is kept of each step
BITS = Bounds(1, 16)
SEED = Bounds(0, 2**32 - 1)


def number(name: str, value: float, above: float = -math.inf, below: float = math.inf) -> float:
    """``value`` as a float.

    Raises:
        ValueError: it is not a number strictly between the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not above < value < below:
        if below < math.inf:
            allowed = f"a number between {above:g} and {below:g}, both excluded"
        elif above > 0:
            allowed = f"a finite number above {above:g}"
        else:
            allowed = "a positive finite number" if above == 0 else "a finite number"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return float(value)


def positive(name: str, value: float) -> float:
    """``value`` as a float, if it is a positive finite number."""
    return number(name, value, above=0)

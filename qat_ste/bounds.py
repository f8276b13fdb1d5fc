"""Between which numbers the arguments of ``compare`` and the keys of the configuration lie."""

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

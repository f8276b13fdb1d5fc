"""Between which numbers the arguments of ``compare`` and the keys of the configuration lie."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Numbers from ``lowest`` to ``highest``, both included unless ``open``; ``whole`` ones only."""

    lowest: float
    highest: float = math.inf
    whole: bool = True
    open: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if self.open:
            return self.lowest < value < self.highest
        return self.lowest <= value <= self.highest

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

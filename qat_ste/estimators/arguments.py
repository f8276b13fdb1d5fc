"""What the estimators ask of their arguments."""

from __future__ import annotations

import math
from numbers import Real


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

"""An estimator that changes while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from qat_ste.base.errors import number
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer

SCALES = ("log", "linear")


class Annealed(Estimator):
    """Estimators that differ in one parameter, one after the other, each for an equal share of the training.

    Taken by itself, outside a comparison, it is the first of them.

    Args:
        make: an estimator's class, or a function that takes the parameter by name.
        parameter: its name.
        start, end: the parameter's first and last value.
        stages: how many estimators, at least 2.
        scale: in between the values are evenly spaced in their logarithm (``log``) or themselves (``linear``).

    Raises:
        ValueError: an argument is out of its bounds, or one of the parameter's values is.
    """

    def __init__(
        self,
        make: Callable[..., Estimator],
        parameter: str,
        start: float,
        end: float,
        stages: int = 10,
        scale: str = "log",
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if isinstance(stages, bool) or not isinstance(stages, int) or stages < 2:
            raise ValueError(f"stages must be a whole number of at least 2, got {stages!r}")
        lowest = 0.0 if scale == "log" else -math.inf
        start, end = number("start", start, above=lowest), number("end", end, above=lowest)
        shares = [count / (stages - 1) for count in range(1, stages - 1)]
        if scale == "log":
            between = [start * (end / start) ** share for share in shares]
        else:
            between = [start + (end - start) * share for share in shares]
        self._stages = tuple(make(**{parameter: value}) for value in [start, *between, end])

    @property
    def stages(self) -> tuple[Estimator, ...]:
        return self._stages

    @property
    def not_covered(self) -> str | None:  # type: ignore[override]
        return self.stages[0].not_covered

    def check(self, quantizer: Quantizer) -> None:
        self.stages[0].check(quantizer)

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        return self.stages[0].shape(u, quantizer)

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        return self.stages[0].derivative(w, quantizer)

    def backward(self, gradient: Tensor, w: Tensor, quantizer: Quantizer) -> Tensor:
        return self.stages[0].backward(gradient, w, quantizer)

    def __repr__(self) -> str:
        return f"Annealed({self.stages[0]} to {self.stages[-1]} in {len(self.stages)} stages)"

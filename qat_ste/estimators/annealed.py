"""An estimator that changes during training."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from qat_ste.base.errors import Number, OneOf, number, require
from qat_ste.estimators.base import Estimator
from qat_ste.quantizers.quantizer import Quantizer

SCALES = ("log", "linear")


class Annealed(Estimator):
    """A sequence of estimators that differ in one parameter, each used for an equal share of training.

    Outside a comparison, it acts as the first of them.

    Args:
        make: class of the estimators, or a function that takes the parameter by name and returns an estimator.
        parameter: name of the parameter.
        start: its first value.
        end: its last value.
        stages: number of estimators, at least 2.
        scale: spaces the values evenly on a logarithmic (``log``) or a ``linear`` scale.

    Raises:
        ArgumentError: an argument, or a value of the parameter, is not allowed.
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
        require(OneOf(SCALES), scale=scale)
        require(Number(2), stages=stages)
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

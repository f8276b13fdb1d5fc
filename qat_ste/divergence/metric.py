"""What every metric of divergence is: a ratio of two sums over weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qat_ste.divergence.trajectory import Trajectory


@dataclass(frozen=True)
class Pair:
    """The reference and one counterpart; ``weight_map`` is the paper's R, None for the identity."""

    reference: Trajectory
    counterpart: Trajectory
    weight_map: Callable[[Tensor], Tensor] | None = None

    @property
    def moved(self) -> Tensor:
        """Whether each weight ever changed its level in either run."""
        return self.reference.moved | self.counterpart.moved

    def mapped_reference(self) -> Tensor:
        """R(w_ref)."""
        weights = self.reference.weights
        return weights if self.weight_map is None else self.weight_map(weights)


class Metric(ABC):
    """A metric of one pair. Subclasses are found by being defined; a file in this folder is enough.

    The value over any set of weights is Σ numerators / Σ denominators, and null where the denominators sum to 0.
    """

    name: ClassVar[str]
    over_time: ClassVar[bool] = False  # cheap enough to be logged along the run
    also_over_moved: ClassVar[bool] = False  # give it over the weights that moved in either run too
    registry: ClassVar[list[type[Metric]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            Metric.registry.append(cls)

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def update(self) -> None:
        """Called after each step, when both trajectories have taken it in."""

    @abstractmethod
    def terms(self) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of each weight."""


def ratio(numerators: Tensor, denominators: Tensor) -> float | None:
    """Σ numerators / Σ denominators, in float64; None where there is nothing to count."""
    below = total(denominators)
    return total(numerators) / below if below else None


def total(values: Tensor) -> float:
    """Their sum in float64; flags are counted, which is many times as fast."""
    if values.dtype == torch.bool:
        return float(values.count_nonzero().item())
    return values.sum(dtype=torch.float64).item()

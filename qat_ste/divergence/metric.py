"""Base class of the metrics of divergence: a metric is a ratio of two sums over weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qat_ste.divergence.trajectory import Changes, Trajectory
from qat_ste.fake_quant.flat_layout import Chunk, ChunkGroup
from qat_ste.quantizers.quantizer import Quantizer

WeightMap = Callable[[Tensor, Quantizer], Tensor]
SHARE = "share, 0 to 1"


@dataclass(frozen=True)
class TrajectoryPair:
    """Trajectories of the reference and of one counterpart, over this rank's slice of the quantized weights.

    ``tensors`` is the number of all quantized tensors, also outside the slice. ``weight_map`` computes the paper's R
    from weights and their quantizer; None is the identity.
    """

    reference: Trajectory
    counterpart: Trajectory
    tensors: int
    weight_map: WeightMap | None = None

    @property
    def chunks(self) -> Sequence[Chunk]:
        """Chunks of the slice; each lies within one tensor."""
        return self.reference.chunks

    @property
    def chunk_groups(self) -> Sequence[ChunkGroup]:
        """The same chunks in groups that are processed together."""
        return self.reference.chunk_groups

    def moved(self, where: slice) -> Tensor:
        """Whether each weight ever changed level in either run; boolean."""
        return self.reference.moved(where) | self.counterpart.moved(where)

    def mapped_reference(self, chunk_group: ChunkGroup) -> Tensor:
        """Reference weights after the weight map, R(w_ref)."""
        weights = self.reference.weights[chunk_group.where]
        return weights if self.weight_map is None else self.weight_map(weights, chunk_group.quantizer)


class Metric(ABC):
    """A metric that compares one counterpart with the reference.

    The value over a set of weights is Σ numerators / Σ denominators; it is null where the denominator is 0. Defining a
    subclass with a ``name`` registers it. docs/metrics.md shows the first line of its docstring, with the source.
    """

    name: ClassVar[str]  # key in results.json
    title: ClassVar[str]  # in tables; by default, the name with spaces
    moved_title: ClassVar[str] = "… of weights that moved"  # for ``also_over_moved``; if empty, tables have no such row
    unit: ClassVar[str] = "–"  # unit and range, for docs/metrics.md
    over_time: ClassVar[bool] = False  # also log it during training: only for cheap metrics
    also_over_moved: ClassVar[bool] = False  # also compute it over the weights that moved in either run
    registry: ClassVar[list[type[Metric]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            cls.title = vars(cls).get("title", cls.name.replace("_", " "))
            Metric.registry.append(cls)

    def __init__(self, pair: TrajectoryPair) -> None:
        self.pair = pair

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        """Receives the level changes of both members over the same steps; counts and hashes already include them."""

    @abstractmethod
    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        """Numerators and denominators by weight; only numerators if an overridden ``sums`` adds the denominators."""

    def sums(self, moved_only: bool = False) -> Tensor:
        """Σ numerators and Σ denominators by tensor, over all or only moved weights; float64, (tensors, 2)."""
        sums = [[0.0, 0.0] for _ in range(self.pair.tensors)]
        for chunk_group in self.pair.chunk_groups:
            for column, values in enumerate(self.terms(chunk_group)):
                values = values * self.pair.moved(chunk_group.where) if moved_only else values
                for chunk, chunk_values in zip(chunk_group.chunks, values.split(chunk_group.sizes), strict=True):
                    sums[chunk.tensor][column] += total(chunk_values)
        return torch.tensor(sums, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What the metric accumulated during training."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""


def total(values: Tensor) -> float:
    """Sum in float64; booleans are counted, which is many times faster."""
    if values.dtype == torch.bool:
        return float(values.count_nonzero().item())
    return values.sum(dtype=torch.float64).item()

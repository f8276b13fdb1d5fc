"""What every metric of divergence is: a ratio of two sums over weights."""

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
    """The trajectories of the reference and one counterpart, over some chunks of ``tensors`` tensors.

    ``weight_map`` is the paper's R, given a chunk's weights and quantizer; None for the identity.
    """

    reference: Trajectory
    counterpart: Trajectory
    tensors: int
    weight_map: WeightMap | None = None

    @property
    def chunks(self) -> Sequence[Chunk]:
        """The chunks of the weights at hand."""
        return self.reference.chunks

    @property
    def chunk_groups(self) -> Sequence[ChunkGroup]:
        """The chunks in groups that are processed together."""
        return self.reference.chunk_groups

    def moved(self, where: slice) -> Tensor:
        """Whether each weight ever changed its level in either run."""
        return self.reference.moved(where) | self.counterpart.moved(where)

    def mapped_reference(self, chunk_group: ChunkGroup) -> Tensor:
        """R(w_ref)."""
        weights = self.reference.weights[chunk_group.where]
        return weights if self.weight_map is None else self.weight_map(weights, chunk_group.quantizer)


class Metric(ABC):
    """A metric of one pair. A subclass is registered when it is defined; a file in this folder is enough.

    The value over any set of weights is Σ numerators / Σ denominators, and null where the denominators sum to 0.
    docs/metrics.md shows the first line of the class's docstring, which names its source.
    """

    name: ClassVar[str]  # in results.json
    title: ClassVar[str]  # in tables; by default the name in words
    moved_title: ClassVar[str] = "… of weights that moved"  # of ``also_over_moved``; tables leave out an empty one
    unit: ClassVar[str] = "–"  # and range, for docs/metrics.md
    over_time: ClassVar[bool] = False  # whether it is logged along the run
    also_over_moved: ClassVar[bool] = False  # also report it over the weights that moved in either run
    registry: ClassVar[list[type[Metric]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            cls.title = vars(cls).get("title", cls.name.replace("_", " "))
            Metric.registry.append(cls)

    def __init__(self, pair: TrajectoryPair) -> None:
        self.pair = pair

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        """Called with the changes of both runs over some steps, after counts and hashes were updated."""

    @abstractmethod
    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        """Numerators and denominators of a chunk group's weights; only numerators where ``sums`` adds the others."""

    def sums(self, moved_only: bool = False) -> Tensor:
        """Σ numerators and Σ denominators by tensor, of all weights or of those that moved; float64, (tensors, 2)."""
        found = [[0.0, 0.0] for _ in range(self.pair.tensors)]
        for chunk_group in self.pair.chunk_groups:
            for column, values in enumerate(self.terms(chunk_group)):
                values = values * self.pair.moved(chunk_group.where) if moved_only else values
                for chunk, own in zip(chunk_group.chunks, values.split(chunk_group.sizes), strict=True):
                    found[chunk.tensor][column] += total(own)
        return torch.tensor(found, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """The state gathered along the run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""


def total(values: Tensor) -> float:
    """The sum in float64; booleans are counted, which is many times faster."""
    if values.dtype == torch.bool:
        return float(values.count_nonzero().item())
    return values.sum(dtype=torch.float64).item()

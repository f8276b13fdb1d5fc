"""What every metric of divergence is: a ratio of two sums over weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qat_ste.divergence.trajectory import Changes, Trajectory
from qat_ste.fake_quant.flat_layout import Block, Piece
from qat_ste.quantizers.quantizer import Quantizer

WeightMap = Callable[[Tensor, Quantizer], Tensor]
SHARE = "share, 0 to 1"


@dataclass(frozen=True)
class Pair:
    """The reference and one counterpart, of whose weights some ``pieces`` of ``parts`` tensors are at hand.

    ``weight_map`` is the paper's R, given a piece's weights and quantizer; None for the identity.
    """

    reference: Trajectory
    counterpart: Trajectory
    parts: int
    weight_map: WeightMap | None = None

    @property
    def pieces(self) -> Sequence[Piece]:
        return self.reference.pieces

    @property
    def blocks(self) -> Sequence[Block]:
        return self.reference.blocks

    def moved(self, where: slice) -> Tensor:
        """Whether each weight ever changed its level in either run."""
        return self.reference.moved(where) | self.counterpart.moved(where)

    def mapped_reference(self, block: Block) -> Tensor:
        """R(w_ref)."""
        weights = self.reference.weights[block.where]
        return weights if self.weight_map is None else self.weight_map(weights, block.quantizer)


class Metric(ABC):
    """A metric of one pair. A subclass is registered when it is defined; a file in this folder is enough.

    The value over any set of weights is Σ numerators / Σ denominators, and null where the denominators sum to 0.
    docs/metrics.md shows the first line of the class's docstring, which names its source.
    """

    name: ClassVar[str]  # in results.json
    title: ClassVar[str]  # in tables; by default the name in words
    moved_title: ClassVar[str] = "… of weights that moved"  # of ``also_over_moved``; tables leave out an empty one
    unit: ClassVar[str] = "–"  # and range, for docs/metrics.md
    over_time: ClassVar[bool] = False  # cheap enough to be logged along the run
    also_over_moved: ClassVar[bool] = False  # give it over the weights that moved in either run too
    registry: ClassVar[list[type[Metric]]] = []

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            cls.title = vars(cls).get("title", cls.name.replace("_", " "))
            Metric.registry.append(cls)

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        """Called with the changes of both over some steps, when counts and hashes are up to date with them."""

    @abstractmethod
    def terms(self, block: Block) -> tuple[Tensor, ...]:
        """Numerators and denominators of the weights of a block; or numerators, where ``sums`` adds the others."""

    def sums(self, of_moved: bool = False) -> Tensor:
        """Σ numerators and Σ denominators by part, of all weights or of those that moved; float64, (parts, 2)."""
        found = [[0.0, 0.0] for _ in range(self.pair.parts)]
        for block in self.pair.blocks:
            for column, values in enumerate(self.terms(block)):
                values = values * self.pair.moved(block.where) if of_moved else values
                for piece, own in zip(block.pieces, values.split(block.sizes), strict=True):
                    found[piece.part][column] += total(own)
        return torch.tensor(found, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered along the run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""


def total(values: Tensor) -> float:
    """Their sum in float64; flags are counted, which is many times as fast."""
    if values.dtype == torch.bool:
        return float(values.count_nonzero().item())
    return values.sum(dtype=torch.float64).item()

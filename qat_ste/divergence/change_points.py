"""Do the weights go through the same levels, and at the same time?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric, Pair
from qat_ste.divergence.pieces import Block
from qat_ste.divergence.trajectory import Trajectory


def same_sequence(pair: Pair, where: slice) -> Tensor:
    """Whether each weight went through the same levels in the same order in both runs, by hash; boolean."""
    reference, counterpart = pair.reference, pair.counterpart
    return (reference.hash[where] == counterpart.hash[where]) & (reference.count[where] == counterpart.count[where])


class ChangePointSequenceAgreement(Metric):
    """Share of weights that went through the same levels in the same order, whenever (paper, metric 2)."""

    name = "change_point_sequence_agreement"
    also_over_moved = True

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, block.where)
        return same, torch.ones_like(same)


class AverageChangePointError(Metric):
    """Σ|time difference| / Σ(length - 1) over weights with equal sequences, in steps (paper, metric 5).

    For equal sequences Σ_k|t_ref - t| over change points is Σ_t|n_ref(t) - n(t)| over steps, n(t) = changes so far.
    As they end at the same n, that is -Σ t·Δ|n_ref - n| over the changes of either run, of which few are touched
    in a step.
    """

    name = "average_change_point_error"

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self._sum = torch.zeros_like(pair.reference.hash)

    def changed(self, own: Trajectory, other: Trajectory, positions: Tensor, step: int) -> None:
        apart = own.count[positions] > other.count[positions]  # else this change brought the two nearer
        self._sum[positions] += torch.where(apart, -step, step)

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, block.where)
        return self._sum[block.where] * same, self.pair.reference.count[block.where] * same

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum.copy_(state["sum"])

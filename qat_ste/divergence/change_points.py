"""Do the weights go through the same levels, and at the same time?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric, Pair
from qat_ste.divergence.trajectory import Changes
from qat_ste.fake_quant.flat_layout import Block


def same_sequence(pair: Pair, where: slice) -> Tensor:
    """Whether each weight went through the same levels in the same order in both runs, by hash; boolean."""
    reference, counterpart = pair.reference, pair.counterpart
    return (reference.hash[where] == counterpart.hash[where]) & (reference.count[where] == counterpart.count[where])


class ChangePointSequenceAgreement(Metric):
    """Share of weights that went through the same levels in the same order, whenever (paper, metric 2)."""

    name = "change_point_sequence_agreement"
    title = "change-point sequence agreement"
    moved_title = ""
    unit = SHARE
    also_over_moved = True

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, block.where)
        return same, torch.ones_like(same)


class AverageChangePointError(Metric):
    """Σ|time difference| / Σ(length - 1) over weights with equal sequences (paper, metric 5).

    For equal sequences Σ_k|t_ref - t| over change points is Σ_t|n_ref(t) - n(t)| over steps, n(t) = changes so far.
    As they end at the same n, that is -Σ t·Δ|n_ref - n| over the changes of either run, in the order of time.
    """

    name = "average_change_point_error"
    title = "change-point error (steps)"
    unit = "steps, from 0"

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self._sum = torch.zeros_like(pair.reference.hash)

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        both = (reference, counterpart)
        positions, steps = (torch.cat([getattr(of, name) for of in both]) for name in ("positions", "steps"))
        if not len(positions):
            return
        sign = torch.cat([torch.full_like(of.positions, one) for of, one in zip(both, (1, -1), strict=True)])
        order = (positions * (steps.max() + 1) + steps).argsort()
        positions, steps, sign = positions[order], steps[order], sign[order]
        # n_ref - n after each change: what it is now less what came later.
        now = self.pair.reference.count[positions] - self.pair.counterpart.count[positions]
        so_far = sign.cumsum(0)
        _, counts = positions.unique_consecutive(return_counts=True)
        after = now - (so_far[counts.cumsum(0) - 1].repeat_interleave(counts) - so_far)
        self._sum.index_add_(0, positions, ((after - sign).abs() - after.abs()) * steps)

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, block.where)
        return self._sum[block.where] * same, self.pair.reference.count[block.where] * same

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum.copy_(state["sum"])

"""Change-point metrics: whether weights visit the same levels in the same order, and how far apart in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric, TrajectoryPair
from qat_ste.divergence.trajectory import Changes
from qat_ste.fake_quant.flat_layout import ChunkGroup


def same_sequence(pair: TrajectoryPair, where: slice) -> Tensor:
    """Whether each weight visited the same levels in the same order in both runs, by hash; boolean."""
    reference, counterpart = pair.reference, pair.counterpart
    return (reference.hash[where] == counterpart.hash[where]) & (reference.count[where] == counterpart.count[where])


class ChangePointSequenceAgreement(Metric):
    """Share of weights that visit the same levels in the same order, at any time (paper, metric 2)."""

    name = "change_point_sequence_agreement"
    title = "change-point sequence agreement"
    moved_title = ""
    unit = SHARE
    also_over_moved = True

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, chunk_group.where)
        return same, torch.ones_like(same)


class AverageChangePointError(Metric):
    """Mean |time difference| per change point, over weights with equal sequences (paper, metric 5).

    For equal sequences, Σ_k|t_ref - t| over change points k equals Σ_t|n_ref(t) - n(t)| over steps t; n(t) counts
    the changes up to t. As n_ref = n at the end, this is -Σ t·Δ|n_ref - n| over the changes of both runs, by time.
    """

    name = "average_change_point_error"
    title = "change-point error (steps)"
    unit = "steps, from 0"

    def __init__(self, pair: TrajectoryPair) -> None:
        super().__init__(pair)
        self._sum = torch.zeros_like(pair.reference.hash)

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        members = (reference, counterpart)
        positions, steps = (torch.cat([getattr(member, name) for member in members]) for name in ("positions", "steps"))
        if not len(positions):
            return
        sign = torch.cat([torch.ones_like(reference.positions), -torch.ones_like(counterpart.positions)])
        order = (positions * (steps.max() + 1) + steps).argsort()
        positions, steps, sign = positions[order], steps[order], sign[order]
        # n_ref - n after each change: its current value minus the sum of the later changes.
        current = self.pair.reference.count[positions] - self.pair.counterpart.count[positions]
        cumulative = sign.cumsum(0)
        after = current - (cumulative[_last_of_equals(positions)] - cumulative)
        self._sum.index_add_(0, positions, ((after - sign).abs() - after.abs()) * steps)

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        same = same_sequence(self.pair, chunk_group.where)
        return self._sum[chunk_group.where] * same, self.pair.reference.count[chunk_group.where] * same

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum.copy_(state["sum"])


def _last_of_equals(values: Tensor) -> Tensor:
    """Index of the last value equal to each, for sorted values; of a size known without waiting for a GPU."""
    indices = torch.arange(len(values), device=values.device)
    indices[:-1].masked_fill_(values[1:] == values[:-1], len(values))
    return indices.flip(0).cummin(0).values.flip(0)

"""Do the weights go through the same levels, and at the same time?"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric, Pair


def same_sequence(pair: Pair) -> Tensor:
    """Whether each weight went through the same levels in the same order in both runs, by hash; boolean."""
    reference, counterpart = pair.reference, pair.counterpart
    return (reference.hash == counterpart.hash) & (reference.count == counterpart.count)


class ChangePointSequenceAgreement(Metric):
    """Share of weights that went through the same levels in the same order, whenever (paper, metric 2)."""

    name = "change_point_sequence_agreement"
    also_over_moved = True

    def terms(self) -> tuple[Tensor, Tensor]:
        same = same_sequence(self.pair)
        return same, torch.ones_like(same)


class AverageChangePointError(Metric):
    """Σ|time difference| / Σ(length - 1) over weights with equal sequences, in steps (paper, metric 5).

    For equal sequences Σ_k|t_ref - t| over change points is Σ_t|n_ref(t) - n(t)| over steps, n(t) = changes so far.
    """

    name = "average_change_point_error"

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self._sum = torch.zeros_like(pair.reference.count)

    def update(self) -> None:
        self._sum += (self.pair.reference.count - self.pair.counterpart.count).abs_()

    def terms(self) -> tuple[Tensor, Tensor]:
        same = same_sequence(self.pair)
        return self._sum * same, self.pair.reference.count * same

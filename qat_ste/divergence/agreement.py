"""Quantized weight agreement: share of weights whose quantized values are equal in both runs."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric
from qat_ste.fake_quant.flat_layout import ChunkGroup


class QuantizedWeightAgreement(Metric):
    """Share of weights with equal quantized values, Q(w_ref) = Q(w) (paper, metric 7)."""

    name = "quantized_weight_agreement"
    unit = SHARE
    over_time = True
    also_over_moved = True

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        same = self.pair.reference.level[chunk_group.where] == self.pair.counterpart.level[chunk_group.where]
        return same, torch.ones_like(same)

"""Quantized weight agreement: do the two runs have the same quantized weights now?"""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric
from qat_ste.fake_quant.flat_layout import Block


class QuantizedWeightAgreement(Metric):
    """Share of weights with Q(w_ref) = Q(w) (paper, metric 7)."""

    name = "quantized_weight_agreement"
    unit = SHARE
    over_time = True
    also_over_moved = True

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        same = self.pair.reference.level[block.where] == self.pair.counterpart.level[block.where]
        return same, torch.ones_like(same)

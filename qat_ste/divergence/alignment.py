"""Weight alignment error: distance of the two runs' latent weights in units of the way that one of them went."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric
from qat_ste.fake_quant.flat_layout import Block


class WeightAlignmentError(Metric):
    """Σ|R(w_ref) - w|/max over the path length Σ_steps Σ|Δw|/max of the counterpart (paper, metric 6)."""

    name = "weight_alignment_error"
    unit = "path lengths, from 0"
    over_time = True

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        return (self._distance(self.pair.mapped_reference(block), block),)

    def sums(self, of_moved: bool = False) -> Tensor:
        found, pieces = super().sums(of_moved), self.pair.pieces
        part = torch.tensor([piece.part for piece in pieces], dtype=torch.long)
        found[:, 1].index_add_(0, part, self.pair.counterpart.path.cpu())
        return found

    def _distance(self, reference: Tensor, block: Block) -> Tensor:
        return (reference - self.pair.counterpart.weights[block.where]).abs_() / block.quantizer.max


class UnmappedWeightAlignmentError(WeightAlignmentError):
    """Weight alignment error with the identity for R: what the weight map is worth."""

    name = "weight_alignment_error_unmapped"
    title = "… without weight map"

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        return (self._distance(self.pair.reference.weights[block.where], block),)

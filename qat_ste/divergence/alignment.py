"""Weight alignment error: distance of the two runs' latent weights, relative to the counterpart's path length."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric
from qat_ste.fake_quant.flat_layout import ChunkGroup


class WeightAlignmentError(Metric):
    """Distance between the runs, Σ|R(w_ref) - w|/max, over the counterpart's path length (paper, metric 6)."""

    name = "weight_alignment_error"
    unit = "path lengths, from 0"
    over_time = True

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        return (self._distance(self.pair.mapped_reference(chunk_group), chunk_group),)

    def sums(self, moved_only: bool = False) -> Tensor:
        sums, chunks = super().sums(moved_only), self.pair.chunks
        tensor_indices = torch.tensor([chunk.tensor for chunk in chunks], dtype=torch.long)
        sums[:, 1].index_add_(0, tensor_indices, self.pair.counterpart.path.cpu())
        return sums

    def _distance(self, reference: Tensor, chunk_group: ChunkGroup) -> Tensor:
        return (reference - self.pair.counterpart.weights[chunk_group.where]).abs_() / chunk_group.quantizer.max


class UnmappedWeightAlignmentError(WeightAlignmentError):
    """Weight alignment error with the identity as R: the increase shows the effect of the weight map (ours)."""

    name = "weight_alignment_error_unmapped"
    title = "… without weight map"

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        return (self._distance(self.pair.reference.weights[chunk_group.where], chunk_group),)

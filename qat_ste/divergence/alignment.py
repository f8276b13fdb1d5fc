"""Weight alignment error: distance of the two runs' latent weights in units of the way that one of them went."""

from __future__ import annotations

from torch import Tensor

from qat_ste.divergence.metric import Metric
from qat_ste.divergence.pieces import Piece


class WeightAlignmentError(Metric):
    """Σ|R(w_ref) - w|/max over the path length Σ_steps Σ|Δw|/max of the counterpart; no unit (paper, metric 6)."""

    name = "weight_alignment_error"
    over_time = True

    def terms(self, number: int, piece: Piece) -> tuple[Tensor, Tensor]:
        return self._terms(self.pair.mapped_reference(piece), number, piece)

    def _terms(self, reference: Tensor, number: int, piece: Piece) -> tuple[Tensor, Tensor]:
        counterpart = self.pair.counterpart
        return (reference - counterpart.weights[piece.where]).abs_() / piece.quantizer.max, counterpart.path[number]


class UnmappedWeightAlignmentError(WeightAlignmentError):
    """The same with the identity for R: what the weight map is worth."""

    name = "weight_alignment_error_unmapped"

    def terms(self, number: int, piece: Piece) -> tuple[Tensor, Tensor]:
        return self._terms(self.pair.reference.weights[piece.where], number, piece)

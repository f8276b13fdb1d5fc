"""The same questions on compressed sequences, where a weight that oscillates counts as one that waits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric
from qat_ste.divergence.sequences import Sequences
from qat_ste.fake_quant.flat_layout import Block


def match(reference: Sequences, counterpart: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per weight: whether the levels are equal, Σ|time difference|, Σ|difference of oscillation counts|."""
    same = reference.length == counterpart.length
    in_ref, in_other = same[reference.weight], same[counterpart.weight]
    weight = reference.weight[in_ref]
    count = len(same)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(weight, weights=values, minlength=count)

    differing = total(reference.level[in_ref] != counterpart.level[in_other])
    times = total(np.abs(reference.time[in_ref] - counterpart.time[in_other]))
    oscillations = total(np.abs(reference.oscillations[in_ref] - counterpart.oscillations[in_other]))
    return same & (differing == 0), times, oscillations


class _Compressed(Metric):
    """Over the weights whose change events are kept."""

    def _match(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return match(self.pair.reference.sequences.compressed(), self.pair.counterpart.sequences.compressed())

    def _changes(self) -> np.ndarray:
        return self.pair.reference.sequences.compressed().length - 1

    def terms(self, block: Block) -> tuple[Tensor, ...]:
        raise NotImplementedError("sums are over the kept weights of all pieces at once")

    def sums(self, of_moved: bool = False) -> Tensor:
        pieces, kept = self.pair.pieces, torch.from_numpy(self.pair.reference.sequences.kept)
        above, below = (torch.from_numpy(np.asarray(values, dtype=np.float64)) for values in self._kept_terms())
        if of_moved:
            moved = self.pair.moved(slice(None)).cpu()[kept]
            above, below = above * moved, below * moved
        starts = torch.tensor([piece.where.start for piece in pieces], dtype=torch.long)
        part = torch.tensor([piece.part for piece in pieces], dtype=torch.long)[
            torch.searchsorted(starts, kept, right=True) - 1
        ]
        found = torch.zeros(self.pair.parts, 2, dtype=torch.float64)
        return found.index_add_(0, part, torch.stack([above, below], 1))

    def _kept_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """Numerators and denominators of the kept weights."""
        raise NotImplementedError


class CompressedChangePointSequenceAgreement(_Compressed):
    """Share of weights with equal compressed sequences (paper, metric 4)."""

    name = "compressed_change_point_sequence_agreement"
    title = "… compressed"
    moved_title = ""
    unit = SHARE
    also_over_moved = True

    def _kept_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, _, _ = self._match()
        return same, np.ones(len(same))


class AverageCompressedChangePointError(_Compressed):
    """Σ|time difference| / Σ(length - 1) over weights with equal compressed sequences (paper, metric 11)."""

    name = "average_compressed_change_point_error"
    title = "… compressed (steps)"
    unit = "steps, from 0"

    def _kept_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, times, _ = self._match()
        return times * same, self._changes() * same


class AverageOscillationError(_Compressed):
    """Σ|difference of oscillation counts| / Σ(length - 1) over equal compressed sequences (paper, metric 11)."""

    name = "average_oscillation_error"
    title = "oscillation error"
    unit = "oscillations a change point, from 0"

    def _kept_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, _, oscillations = self._match()
        return oscillations * same, self._changes() * same

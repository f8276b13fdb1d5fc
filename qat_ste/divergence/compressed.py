"""Change-point metrics on compressed sequences, in which oscillations are folded into a count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qat_ste.divergence.metric import SHARE, Metric
from qat_ste.divergence.sequences import Sequences
from qat_ste.fake_quant.flat_layout import ChunkGroup


def match(reference: Sequences, counterpart: Sequences) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per weight: whether the levels are equal, Σ|time difference|, Σ|oscillation count difference|."""
    same = reference.length == counterpart.length
    in_ref, in_counterpart = same[reference.weight], same[counterpart.weight]
    weight = reference.weight[in_ref]
    count = len(same)

    def sum_by_weight(values: np.ndarray) -> np.ndarray:
        return np.bincount(weight, weights=values, minlength=count)

    differing = sum_by_weight(reference.level[in_ref] != counterpart.level[in_counterpart])
    times = sum_by_weight(np.abs(reference.time[in_ref] - counterpart.time[in_counterpart]))
    oscillations = sum_by_weight(np.abs(reference.oscillations[in_ref] - counterpart.oscillations[in_counterpart]))
    return same & (differing == 0), times, oscillations


class _SampledMetric(Metric):
    """A metric over the weights whose change events are stored."""

    def _match(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return match(self.pair.reference.sequences.compressed(), self.pair.counterpart.sequences.compressed())

    def _changes(self) -> np.ndarray:
        return self.pair.reference.sequences.compressed().length - 1

    def terms(self, chunk_group: ChunkGroup) -> tuple[Tensor, ...]:
        raise NotImplementedError("sums() covers the sampled weights of all chunks at once")

    def sums(self, moved_only: bool = False) -> Tensor:
        chunks, sampled = self.pair.chunks, torch.from_numpy(self.pair.reference.sequences.sampled)
        terms = torch.stack([torch.from_numpy(np.asarray(values, np.float64)) for values in self._sampled_terms()], 1)
        if moved_only:
            terms = terms * self.pair.moved(slice(None)).cpu()[sampled, None]
        starts = torch.tensor([chunk.where.start for chunk in chunks], dtype=torch.long)
        tensor_indices = torch.tensor([chunk.tensor for chunk in chunks], dtype=torch.long)
        chunk_indices = torch.searchsorted(starts, sampled, right=True) - 1
        sums = torch.zeros(self.pair.tensors, 2, dtype=torch.float64)
        return sums.index_add_(0, tensor_indices[chunk_indices], terms)

    def _sampled_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """Numerators and denominators of the sampled weights."""
        raise NotImplementedError


class CompressedChangePointSequenceAgreement(_SampledMetric):
    """Share of weights that visit the same levels in the same order, oscillations folded (paper, metric 4)."""

    name = "compressed_change_point_sequence_agreement"
    title = "… compressed"
    moved_title = ""
    unit = SHARE
    also_over_moved = True

    def _sampled_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, _, _ = self._match()
        return same, np.ones(len(same))


class AverageCompressedChangePointError(_SampledMetric):
    """Mean |time difference| per change point, over equal compressed sequences (paper, metric 11)."""

    name = "average_compressed_change_point_error"
    title = "… compressed (steps)"
    unit = "steps, from 0"

    def _sampled_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, times, _ = self._match()
        return times * same, self._changes() * same


class AverageOscillationError(_SampledMetric):
    """Mean |oscillation count difference| per change point, over equal compressed sequences (paper, metric 11)."""

    name = "average_oscillation_error"
    title = "oscillation error"
    unit = "oscillations per change point, from 0"

    def _sampled_terms(self) -> tuple[np.ndarray, np.ndarray]:
        same, _, oscillations = self._match()
        return oscillations * same, self._changes() * same

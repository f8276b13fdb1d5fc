"""The same questions on compressed sequences, where a weight that oscillates counts as one that waits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric
from qat_ste.divergence.sequences import Sequences


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
    def _spread(self, values: np.ndarray) -> Tensor:
        """From the sampled weights to all; 0 for the others."""
        level = self.pair.reference.level
        spread = torch.zeros(len(level), dtype=torch.float64)
        spread[torch.from_numpy(self.pair.reference.sequences.kept)] = torch.from_numpy(values.astype(np.float64))
        return spread.to(level.device)

    def _match(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return match(self.pair.reference.sequences.compressed(), self.pair.counterpart.sequences.compressed())

    def _changes(self) -> np.ndarray:
        return self.pair.reference.sequences.compressed().length - 1


class CompressedChangePointSequenceAgreement(_Compressed):
    """Share of weights with equal compressed sequences (paper, metric 4)."""

    name = "compressed_change_point_sequence_agreement"
    also_over_moved = True

    def terms(self) -> tuple[Tensor, Tensor]:
        same, _, _ = self._match()
        return self._spread(same), self._spread(np.ones(len(same)))


class AverageCompressedChangePointError(_Compressed):
    """Σ|time difference| / Σ(length - 1) over weights with equal compressed sequences, in steps (metric 11)."""

    name = "average_compressed_change_point_error"

    def terms(self) -> tuple[Tensor, Tensor]:
        same, times, _ = self._match()
        return self._spread(times * same), self._spread(self._changes() * same)


class AverageOscillationError(_Compressed):
    """Σ|difference of oscillation counts| / Σ(length - 1) over weights with equal compressed sequences (metric 11)."""

    name = "average_oscillation_error"

    def terms(self) -> tuple[Tensor, Tensor]:
        same, _, oscillations = self._match()
        return self._spread(oscillations * same), self._spread(self._changes() * same)

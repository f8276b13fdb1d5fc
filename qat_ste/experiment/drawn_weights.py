"""The weights that figures show."""

from __future__ import annotations

import numpy as np
import torch

from qat_ste.divergence import WeightMap
from qat_ste.experiment.cohort import Cohort


class DrawnWeights:
    """Initial and final latent weights over max, and R(w_ref) of each counterpart, of at most ``limit`` weights."""

    def __init__(self, cohort: Cohort, limit: int = 50_000) -> None:
        self.cohort = cohort
        ranks, size = cohort.layout.ranks, cohort.last - cohort.first
        share = -(-limit // ranks.size)
        self._drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:share].sort().values
        self._initial = [self._take(number) for number in range(len(cohort.slices))]

    def arrays(self) -> dict[str, np.ndarray]:
        """``<member>/initial``, ``/final`` and ``/mapped_reference``; empty but on rank 0."""
        cohort = self.cohort
        arrays = {}
        for name, number in cohort.names.items():
            arrays[f"{name}/initial"] = self._initial[number]
            arrays[f"{name}/final"] = self._take(number)
            if number:
                arrays[f"{name}/mapped_reference"] = self._take(0, cohort.weight_map(number))
        gathered = cohort.layout.ranks.gather(arrays) or []
        return {name: np.concatenate([of_rank[name] for of_rank in gathered]) for name in arrays} if gathered else {}

    def _take(self, number: int, weight_map: WeightMap | None = None) -> np.ndarray:
        taken, weights = [], self.cohort.slices[number]
        for chunk in self.cohort.chunks[number]:
            start, stop = chunk.where.start, chunk.where.stop
            inside = self._drawn[(self._drawn >= start) & (self._drawn < stop)] - start
            values = weights[chunk.where]
            values = weight_map(values, chunk.quantizer) if weight_map else values
            taken.append((values.double() / chunk.quantizer.max).cpu()[inside].float().numpy())
        return np.concatenate(taken or [np.zeros(0, np.float32)])

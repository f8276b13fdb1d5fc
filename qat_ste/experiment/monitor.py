"""Measures a cohort while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence import Divergence, Trajectories, TrajectoryPair, Values, sample_positions
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.error_bound import ErrorBound


class DivergenceMonitor:
    """Trajectories of all members and the metrics of each counterpart, over this rank's slice of the weights."""

    def __init__(self, cohort: Cohort, sequence_weights: int, seed: int) -> None:
        self.cohort = cohort
        sampled = sample_positions(cohort.tensors, sequence_weights, seed)
        self.sequence_weights = cohort.quantized_weights if sampled is None else len(sampled)
        if sampled is not None:
            sampled = sampled[(sampled >= cohort.first) & (sampled < cohort.last)] - cohort.first
        self.trajectories = Trajectories(cohort.slices, cohort.chunks, cohort.slice_chunk_groups, sampled)
        reference = self.trajectories[0]
        self.divergences = {
            number: Divergence(
                TrajectoryPair(reference, self.trajectories[number], len(cohort.tensors), cohort.weight_map(number)),
                cohort.layout.ranks.sum,
            )
            for number in cohort.counterparts.values()
        }
        self._bounds = {
            number: ErrorBound(cohort, number, self.trajectories)
            for number in self.divergences
            if ErrorBound.applies(cohort, number)
        }

    def now(self, number: int) -> Values:
        """The metrics of one counterpart that are logged over time."""
        self.settle()
        bound = self._bounds.get(number)
        return self.divergences[number].now() | ({"weight_alignment_error_bound": bound.now()} if bound else {})

    def observe(self, step: int, levels: Iterable[Tensor]) -> None:
        """Takes in the weights after optimizer step ``step`` (1, 2, …), and their levels one chunk group at a time."""
        for bound in self._bounds.values():
            bound.observe()
        self.trajectories.observe(step, levels)
        if self.trajectories.full:
            self.settle(wait=False)

    def settle(self, wait: bool = True) -> None:
        """Updates all metrics with the changes observed since the last call; see ``Trajectories.settle``."""
        changes = self.trajectories.settle(wait)
        for number, divergence in self.divergences.items() if changes else ():
            divergence.changed(changes[0], changes[number])

    def results(self, number: int) -> tuple[Values, dict[str, Values]]:
        """Every metric of one counterpart, over all weights and by tensor."""
        self.settle()
        return self.divergences[number].results([tensor.name for tensor in self.cohort.tensors])

    def remapped(self) -> None:
        """After re-mapping, which keeps levels: leaves the jump out of the path."""
        self.trajectories.previous.copy_(self.trajectories.weights)

    def initial(self) -> list[Values]:
        """Before the first step: mean |R(w₀_ref) - w₀|/max, not divided by a path, and the quantized agreement."""
        values: list[Values] = [{} for _ in self.trajectories]
        for number, divergence in self.divergences.items():
            sums = self.cohort.layout.ranks.sum(torch.stack([metric.sums().sum(0) for metric in divergence.metrics]))
            by_name = dict(zip((metric.name for metric in divergence.metrics), sums[:, 0].tolist(), strict=True))
            values[number] = {
                "initial_alignment_error": by_name["weight_alignment_error"] / self.cohort.quantized_weights,
                "initial_quantized_agreement": by_name["quantized_weight_agreement"] / self.cohort.quantized_weights,
            }
        return values

    def shares(self) -> list[Values]:
        """Each member's share of weights that ever moved and share that is saturated now."""
        self.settle()
        counts = torch.zeros(len(self.trajectories), 2, dtype=torch.float64)
        for trajectory, count in zip(self.trajectories, counts, strict=True):
            for chunk in trajectory.chunks:
                saturated = chunk.quantizer.saturated(trajectory.weights[chunk.where])
                flags = (trajectory.moved(chunk.where), saturated)
                count += torch.tensor([flag.count_nonzero().item() for flag in flags])
        shares = self.cohort.layout.ranks.sum(counts) / self.cohort.quantized_weights
        return [{"moved_fraction": moved, "saturated_fraction": saturated} for moved, saturated in shares.tolist()]

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return {
            "trajectories": [trajectory.state_dict() for trajectory in self.trajectories],
            "divergences": {number: divergence.state_dict() for number, divergence in self.divergences.items()},
            "bounds": {number: bound.state_dict() for number, bound in self._bounds.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state; restore the weights first."""
        for trajectory, saved in zip(self.trajectories, state["trajectories"], strict=True):
            trajectory.load_state_dict(saved)
        for number, divergence in self.divergences.items():
            divergence.load_state_dict(state["divergences"][number])
        for number, bound in self._bounds.items():
            bound.load_state_dict(state["bounds"][number])

"""Metrics of how far two runs drift apart, computed during training; one topic per file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric, TrajectoryPair, WeightMap
from qat_ste.divergence.trajectory import Changes, Trajectories, Trajectory
from qat_ste.fake_quant.flat_layout import FlatTensor

for _module in pkgutil.iter_modules(__path__):  # importing a module registers its metrics
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Divergence", "Metric", "Trajectories", "Trajectory", "TrajectoryPair", "WeightMap", "metric_titles"]

Values = dict[str, float | None]
Reduce = Callable[[Tensor], Tensor]


class Divergence:
    """All metrics of one counterpart against the reference.

    Args:
        reduce: sums a tensor over all ranks, each of which holds a slice of the weights.
    """

    def __init__(self, pair: TrajectoryPair, reduce: Reduce = lambda sums: sums) -> None:
        self.pair, self._reduce = pair, reduce
        self.metrics = [metric(pair) for metric in Metric.registry]

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        """Passes the level changes of both members, over the same steps, to all metrics."""
        for metric in self.metrics:
            metric.changed(reference, counterpart)

    def now(self) -> Values:
        """Current values of the metrics that are logged over time."""
        metrics = [metric for metric in self.metrics if metric.over_time]
        sums = self._reduce(torch.stack([metric.sums().sum(0) for metric in metrics]))
        return {metric.name: _ratio(*terms) for metric, terms in zip(metrics, sums.tolist(), strict=True)}

    def results(self, tensors: Sequence[str]) -> tuple[Values, dict[str, Values]]:
        """Every metric over all weights, and by tensor; ``tensors`` holds the names of the tensors."""
        sums_by_name = {metric.name: metric.sums() for metric in self.metrics}
        sums_by_name |= {f"{metric.name}_moved": metric.sums(True) for metric in self.metrics if metric.also_over_moved}
        sums = self._reduce(torch.stack(list(sums_by_name.values())))
        overall = {name: _ratio(*terms) for name, terms in zip(sums_by_name, sums.sum(1).tolist(), strict=True)}
        by_tensor = {
            tensor: {name: _ratio(*terms) for name, terms in zip(sums_by_name, tensor_sums, strict=True)}
            for tensor, tensor_sums in zip(tensors, sums.transpose(0, 1).tolist(), strict=True)
        }
        return overall, by_tensor

    def state_dict(self) -> dict[str, Any]:
        """State of all metrics, by name."""
        return {metric.name: metric.state_dict() for metric in self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of all metrics."""
        for metric in self.metrics:
            metric.load_state_dict(state.get(metric.name, {}))


def metric_titles() -> dict[str, dict[str, str]]:
    """Titles of the metrics in tables, by name; stored as ``metrics`` in ``results.json``."""
    titles = {}
    for metric in Metric.registry:
        titles[metric.name] = {"title": metric.title}
        if metric.also_over_moved and metric.moved_title:
            titles[f"{metric.name}_moved"] = {"title": metric.moved_title}
    return titles


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def sample_positions(tensors: Sequence[FlatTensor], size: int, seed: int) -> Tensor | None:
    """Samples about ``size`` positions, from each tensor in proportion to its size; None if all weights fit."""
    total = tensors[-1].stop
    if total <= size:
        return None
    generator = torch.Generator().manual_seed(seed)
    positions = []
    for tensor in tensors:
        count = tensor.stop - tensor.start
        sampled = max(1, count * size // total)
        positions.append(tensor.start + torch.randperm(count, generator=generator)[:sampled].sort().values)
    return torch.cat(positions)

"""Metrics of how far two runs part, computed as training goes; one idea a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric, Pair, WeightMap
from qat_ste.divergence.trajectory import Changes, Trajectories, Trajectory
from qat_ste.fake_quant.flat_layout import Part

for _module in pkgutil.iter_modules(__path__):  # defines, and so registers, every metric of this folder
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Divergence", "Metric", "Pair", "Trajectories", "Trajectory", "WeightMap", "metric_titles"]

Values = dict[str, float | None]
Reduce = Callable[[Tensor], Tensor]


class Divergence:
    """All metrics of one counterpart against the reference.

    Args:
        reduce: sums a tensor over the ranks, where each has some of the weights.
    """

    def __init__(self, pair: Pair, reduce: Reduce = lambda sums: sums) -> None:
        self.pair, self._reduce = pair, reduce
        self.metrics = [metric(pair) for metric in Metric.registry]

    def changed(self, reference: Changes, counterpart: Changes) -> None:
        """Weights of both changed level, over the same steps."""
        for metric in self.metrics:
            metric.changed(reference, counterpart)

    def now(self) -> Values:
        """The metrics that are followed over time."""
        metrics = [metric for metric in self.metrics if metric.over_time]
        sums = self._reduce(torch.stack([metric.sums().sum(0) for metric in metrics]))
        return {metric.name: _ratio(*found) for metric, found in zip(metrics, sums.tolist(), strict=True)}

    def results(self, parts: Sequence[str]) -> tuple[Values, dict[str, Values]]:
        """Every metric over all weights, and the same by tensor, of which ``parts`` are the names."""
        found = {metric.name: metric.sums() for metric in self.metrics}
        found |= {f"{metric.name}_moved": metric.sums(True) for metric in self.metrics if metric.also_over_moved}
        sums = self._reduce(torch.stack(list(found.values())))
        whole = {name: _ratio(*both) for name, both in zip(found, sums.sum(1).tolist(), strict=True)}
        layers = {
            part: {name: _ratio(*both) for name, both in zip(found, of_part, strict=True)}
            for part, of_part in zip(parts, sums.transpose(0, 1).tolist(), strict=True)
        }
        return whole, layers

    def state_dict(self) -> dict[str, Any]:
        """What the metrics gathered along the run."""
        return {metric.name: metric.state_dict() for metric in self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        for metric in self.metrics:
            metric.load_state_dict(state.get(metric.name, {}))


def metric_titles() -> dict[str, dict[str, str]]:
    """What tables call the metrics: ``metrics`` of ``results.json``."""
    titles = {}
    for metric in Metric.registry:
        titles[metric.name] = {"title": metric.title}
        if metric.also_over_moved and metric.moved_title:
            titles[f"{metric.name}_moved"] = {"title": metric.moved_title}
    return titles


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def sample_positions(parts: Sequence[Part], size: int, seed: int) -> Tensor | None:
    """A fixed sample of about ``size`` positions, drawn per tensor in proportion; None where all fit."""
    total = parts[-1].stop
    if total <= size:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for part in parts:
        count = part.stop - part.start
        wanted = max(1, count * size // total)
        drawn.append(part.start + torch.randperm(count, generator=generator)[:wanted].sort().values)
    return torch.cat(drawn)

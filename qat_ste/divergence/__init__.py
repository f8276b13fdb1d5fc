"""Metrics of how far two runs part, computed as training goes; one idea a file."""

from __future__ import annotations

import importlib
import pkgutil

import torch
from torch import Tensor

from qat_ste.divergence.metric import Metric, Pair, ratio, total
from qat_ste.divergence.trajectory import Trajectory

for _module in pkgutil.iter_modules(__path__):  # defines, and so registers, every metric of this folder
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Divergence", "Metric", "Pair", "Trajectory", "ratio"]

Values = dict[str, float | None]


class Divergence:
    """All metrics of one counterpart against the reference."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.metrics = [metric(pair) for metric in Metric.registry]

    def update(self) -> None:
        for metric in self.metrics:
            metric.update()

    def now(self) -> Values:
        """The metrics that are followed over time."""
        return {metric.name: ratio(*metric.terms()) for metric in self.metrics if metric.over_time}

    def results(self, parts: dict[str, slice]) -> tuple[Values, dict[str, Values]]:
        """Every metric over all weights, and the same by tensor."""
        whole: Values = {}
        layers: dict[str, Values] = {name: {} for name in parts}
        moved = self.pair.moved
        for metric in self.metrics:
            numerators, denominators = metric.terms()
            variants = {metric.name: (numerators, denominators)}
            if metric.also_over_moved:
                variants[f"{metric.name}_moved"] = (numerators * moved, denominators * moved)
            for name, terms in variants.items():
                sums = {layer: [total(values[part]) for values in terms] for layer, part in parts.items()}
                for layer, (above, below) in sums.items():
                    layers[layer][name] = above / below if below else None
                above, below = (sum(values) for values in zip(*sums.values(), strict=True))
                whole[name] = above / below if below else None
        return whole, layers


def sample_positions(parts: dict[str, slice], size: int, seed: int) -> Tensor | None:
    """A fixed sample of about ``size`` positions, drawn per tensor in proportion; None where all fit."""
    total = sum(part.stop - part.start for part in parts.values())
    if total <= size:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for part in parts.values():
        count = part.stop - part.start
        wanted = max(1, count * size // total)
        drawn.append(part.start + torch.randperm(count, generator=generator)[:wanted].sort().values)
    return torch.cat(drawn)

"""A quantizer of consecutive groups of weights, each with its scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qat_ste.quantizers.quantizer import Quantizer


class GroupedQuantizer(Quantizer):
    """Bit for bit the quantizer with one ``max`` a weight, but computes levels and thresholds once a group.

    Args:
        quantizer: whose ``max`` has the shape groups x 1.
        size: weights of a group. Weights have the shape ... x (groups·size).
    """

    def __init__(self, quantizer: Quantizer, size: int) -> None:
        self._quantizer, self._size = quantizer, size
        self.num_levels, self.saturation = quantizer.num_levels, quantizer.saturation

    @property
    def max(self) -> Tensor:  # type: ignore[override]
        """One entry a weight, made anew: kept, it would take as much memory as the weights."""
        return self._by_weight(torch.as_tensor(self._quantizer.max))

    def with_max(self, max: float | Tensor) -> Quantizer:
        return self._quantizer.with_max(max)

    def rescaled(self, max: Tensor) -> Quantizer:
        return self._quantizer.rescaled(max)

    @property
    def levels(self) -> Tensor:
        return self._by_weight(self._quantizer.levels)

    @property
    def thresholds(self) -> Tensor:
        return self._by_weight(self._quantizer.thresholds)

    def index(self, w: Tensor) -> Tensor:
        return self._quantizer.index(self._by_group(w)).flatten(-2)

    def level(self, index: Tensor) -> Tensor:
        return self._quantizer.level(self._by_group(index)).flatten(-2)

    def __call__(self, w: Tensor) -> Tensor:
        return self._quantizer(self._by_group(w)).flatten(-2)

    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        offset, threshold, width = self._quantizer.interval(self._by_group(w))
        return offset.flatten(-2), threshold.flatten(-2), self._by_weight(torch.as_tensor(width))

    def offset(self, w: Tensor) -> Tensor:
        return self._quantizer.offset(self._by_group(w)).flatten(-2)

    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        lowest, highest = self._quantizer.reach(saturation, self._by_group(w))
        return self._by_weight(lowest), self._by_weight(highest)

    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        lowest, highest = self._quantizer.cell(self._by_group(w))
        return lowest.flatten(-2), highest.flatten(-2)

    def relative(self, w: Tensor) -> Tensor:
        return self._quantizer.relative(self._by_group(w)).flatten(-2)

    def gradient_mask(self, w: Tensor) -> Tensor:
        return self._quantizer.gradient_mask(self._by_group(w)).flatten(-2)

    def saturated(self, w: Tensor) -> Tensor:
        return self._quantizer.saturated(self._by_group(w)).flatten(-2)

    @property
    def state(self) -> dict[str, Any]:
        return self._quantizer.state | {"max": self.max}

    def _by_group(self, w: Tensor) -> Tensor:
        return w.unflatten(-1, (-1, self._size))

    def _by_weight(self, values: Tensor) -> Tensor:
        """Values of ... x groups x (1 or size) as one a weight."""
        return values.expand(*values.shape[:-1], self._size).flatten(-2)

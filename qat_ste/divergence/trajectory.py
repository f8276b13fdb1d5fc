"""What is kept of one member's weights while it trains: constant memory a weight, plus its change events."""

from __future__ import annotations

import torch
from torch import Tensor

from qat_ste.divergence.sequences import ChangeSequences
from qat_ste.quantizer import UniformQuantizer


class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of all quantized weights of one member.

    Args:
        weights: flat buffer of latent weights that training changes in place.
        quantizer: quantizer of that buffer.
        sampled: positions whose change events are kept; None for all.
    """

    def __init__(self, weights: Tensor, quantizer: UniformQuantizer, sampled: Tensor | None = None) -> None:
        self.weights, self.quantizer = weights, quantizer
        self.initial = weights.clone()
        self.level = quantizer.index(weights)
        self.count = torch.zeros_like(self.level, dtype=torch.int32)
        self.hash = self.level.long()
        self.path = torch.zeros_like(weights)
        self._previous, self._difference = weights.clone(), torch.empty_like(weights)
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(self.level, dtype=torch.bool)
            self._is_sampled[sampled] = True
        self.sequences = ChangeSequences(self.level, sampled)

    def observe(self, step: int) -> None:
        """Takes in the weights after optimizer step ``step`` (1, 2, …)."""
        level = self.quantizer.index(self.weights)
        changed = (level != self.level).nonzero().squeeze(1)
        if len(changed):
            new = level[changed]
            self.count[changed] += 1
            self.hash[changed] = _mix(self.hash[changed], new.long())
            if self._is_sampled is not None:
                keep = self._is_sampled[changed]
                changed, new = changed[keep], new[keep]
            self.sequences.append(changed, step, new)
        self.level = level
        torch.sub(self.weights, self._previous, out=self._difference)
        self.path += self._difference.abs_()
        self._previous.copy_(self.weights)

    @property
    def moved(self) -> Tensor:
        """Whether each weight ever changed its level."""
        return self.count > 0

    @property
    def saturated(self) -> Tensor:
        """Whether each weight lies beyond the range now."""
        return self.quantizer.saturated(self.weights)


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

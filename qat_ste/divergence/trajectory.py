"""What is kept of one member's weights while it trains: constant memory a weight, plus its change events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.pieces import Piece, blocks_of
from qat_ste.divergence.sequences import ChangeSequences


class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of quantized weights of one member.

    Args:
        weights: flat buffer of latent weights that changes as training goes.
        pieces: of that buffer.
        sampled: positions whose change events are kept; None for all.
        scratch: like ``weights``, may be the same for several trajectories.

    ``path`` is Σ|Δw|/max over all steps by piece, float64; ``previous`` the weights before the next ``observe``.
    """

    def __init__(
        self, weights: Tensor, pieces: Sequence[Piece], sampled: Tensor | None = None, scratch: Tensor | None = None
    ) -> None:
        self.weights, self.pieces = weights, pieces
        self.level = torch.zeros_like(weights)
        self.count = torch.zeros_like(weights, dtype=torch.int32)
        self.path = torch.zeros(len(pieces), dtype=torch.float64, device=weights.device)
        self.previous = weights.clone()
        self._scratch = torch.zeros_like(weights) if scratch is None else scratch
        buffers = (self.weights, self.previous, self.level, self._scratch)
        blocks = blocks_of(pieces, weights)
        self._blocks = [(block.quantizer, [values[block.where] for values in buffers]) for block in blocks]
        # A range that is one number divides the sum, another one what is summed.
        ranges = [(piece, piece.quantizer.max) for piece in pieces]
        self._ways = [(self.previous[piece.where], m if isinstance(m, Tensor) else None) for piece, m in ranges]
        self._ranges = self.path.new_tensor([1.0 if isinstance(m, Tensor) else m for _, m in ranges])
        self._find_levels()
        self.hash = self.level.long()
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights, dtype=torch.bool)
            self._is_sampled[sampled] = True
        self.sequences = ChangeSequences(self.level, sampled)

    def observe(self, step: int) -> Tensor:
        """Takes in the weights after optimizer step ``step`` (1, 2, …); returns the positions that changed level."""
        for quantizer, (weights, previous, level, scratch) in self._blocks:
            index = quantizer.index(weights)
            torch.sub(index, level, out=scratch)
            level.copy_(index)
            previous.sub_(weights).abs_()  # until the sums are taken, the way that each weight went
        ways = [way.sum() if max_ is None else (way / max_).sum() for way, max_ in self._ways]
        if ways:
            self.path += torch.stack(ways) / self._ranges
        self.previous.copy_(self.weights)
        changed = self._scratch.nonzero().squeeze(1)
        if len(changed):
            new = self.level[changed]
            self.count[changed] += 1
            self.hash[changed] = _mix(self.hash[changed], new.long())
            if self._is_sampled is None:
                self.sequences.append(changed, step, new)
            else:
                keep = self._is_sampled[changed]
                self.sequences.append(changed[keep], step, new[keep])
        return changed

    def moved(self, where: slice) -> Tensor:
        """Whether each weight ever changed its level."""
        return self.count[where] > 0

    def state_dict(self) -> dict[str, Any]:
        """All that the weights do not tell themselves."""
        return {"count": self.count, "hash": self.hash, "path": self.path, "sequences": self.sequences.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; the weights have been restored before."""
        for name in ("count", "hash", "path"):
            getattr(self, name).copy_(state[name])
        self.sequences.load_state_dict(state["sequences"])
        self.previous.copy_(self.weights)
        self._find_levels()

    def _find_levels(self) -> None:
        for quantizer, (weights, _, level, _) in self._blocks:
            level.copy_(quantizer.index(weights))


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

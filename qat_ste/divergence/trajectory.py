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
        self._blocks = blocks_of(pieces, weights)
        self.level = torch.zeros_like(weights)
        self.count = torch.zeros_like(weights, dtype=torch.int32)
        self.path = torch.zeros(len(pieces), dtype=torch.float64, device=weights.device)
        self.previous = weights.clone()
        self._scratch = torch.zeros_like(weights) if scratch is None else scratch
        self._find_levels()
        self.hash = self.level.long()
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights, dtype=torch.bool)
            self._is_sampled[sampled] = True
        self.sequences = ChangeSequences(self.level, sampled)

    def observe(self, step: int) -> Tensor:
        """Takes in the weights after optimizer step ``step`` (1, 2, …); returns the positions that changed level."""
        moved = []
        for block in self._blocks:
            weights, previous, level = (values[block.where] for values in (self.weights, self.previous, self.level))
            index = block.quantizer.index(weights)
            torch.sub(index, level, out=self._scratch[block.where])
            level.copy_(index)
            previous.sub_(weights).abs_()
            for piece in block.pieces:
                way, max_ = self.previous[piece.where], piece.quantizer.max
                moved.append((way / max_).sum() if isinstance(max_, Tensor) else way.sum() / max_)
            previous.copy_(weights)
        if moved:
            self.path += torch.stack(moved)
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
        for block in self._blocks:
            self.level[block.where] = block.quantizer.index(self.weights[block.where])


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

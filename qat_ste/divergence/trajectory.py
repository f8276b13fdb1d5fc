"""What is kept of one member's weights while it trains: constant memory a weight, plus its change events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.pieces import Piece
from qat_ste.divergence.sequences import ChangeSequences


class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of quantized weights of one member.

    Args:
        weights: flat buffer of latent weights that changes as training goes.
        pieces: of that buffer.
        sampled: positions whose change events are kept; None for all.
        flags: buffer of booleans, one a weight, that several trajectories may use in turn.

    ``path`` is Σ|Δw|/max over all steps by piece, float64; ``previous`` the weights before the next ``observe``.
    """

    def __init__(
        self, weights: Tensor, pieces: Sequence[Piece], sampled: Tensor | None = None, flags: Tensor | None = None
    ) -> None:
        self.weights, self.pieces = weights, pieces
        self.level = torch.zeros_like(weights, dtype=pieces[0].quantizer.index_dtype if pieces else torch.uint8)
        self.count = torch.zeros_like(weights, dtype=torch.int32)
        self.path = torch.zeros(len(pieces), dtype=torch.float64, device=weights.device)
        self.previous = weights.clone()
        self._flags = torch.zeros_like(weights, dtype=torch.bool) if flags is None else flags
        for piece in pieces:
            self.level[piece.where] = piece.quantizer.integer_index(weights[piece.where])
        self.hash = self.level.long()
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights, dtype=torch.bool)
            self._is_sampled[sampled] = True
        self.sequences = ChangeSequences(self.level, sampled)

    def observe(self, step: int) -> Tensor:
        """Takes in the weights after optimizer step ``step`` (1, 2, …); returns the positions that changed level."""
        moved = []
        for piece in self.pieces:
            weights, previous, level = (values[piece.where] for values in (self.weights, self.previous, self.level))
            index = piece.quantizer.integer_index(weights)
            torch.ne(index, level, out=self._flags[piece.where])
            level.copy_(index)
            way, max_ = previous.sub_(weights).abs_(), piece.quantizer.max
            moved.append((way / max_).sum() if isinstance(max_, Tensor) else way.sum() / max_)
            previous.copy_(weights)
        if moved:
            self.path += torch.stack(moved)
        changed = self._flags.nonzero().squeeze(1)
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
        for piece in self.pieces:
            self.level[piece.where] = piece.quantizer.integer_index(self.weights[piece.where])


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

"""Trajectories of the members' quantized weights: constant memory per weight, plus change events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.sequences import ChangeSequences
from qat_ste.fake_quant.flat_layout import Chunk, ChunkGroup, level_indices

# Level changes are processed together, after at most this many steps or about this many changes.
MAX_PENDING_STEPS, MAX_PENDING_CHANGES = 64, 1_000_000


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of one member's quantized weights.

    ``path`` is Σ|Δw|/max over all steps by chunk, float64; ``previous`` holds the weights at the last ``observe``.
    """

    chunks: Sequence[Chunk]
    chunk_groups: Sequence[ChunkGroup]
    weights: Tensor
    previous: Tensor
    level: Tensor
    count: Tensor
    hash: Tensor
    path: Tensor
    sequences: ChangeSequences

    def moved(self, where: slice) -> Tensor:
        """Whether each weight ever changed level; boolean."""
        return self.count[where] > 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that cannot be computed from the weights."""
        return {"count": self.count, "hash": self.hash, "path": self.path, "sequences": self.sequences.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state; the weights must be restored before."""
        for name in ("count", "hash", "path"):
            getattr(self, name).copy_(state[name])
        self.sequences.load_state_dict(state["sequences"])
        self.previous.copy_(self.weights)
        _compute_levels(self.chunk_groups, self.weights, self.level)


@dataclass(frozen=True)
class Changes:
    """Positions of one member's weights that changed level, and the steps; sorted by position, then by step."""

    positions: Tensor
    steps: Tensor


class Trajectories(Sequence[Trajectory]):
    """Trajectories of all members, updated together, which takes hardly more operations than updating one.

    Args:
        weights: flat latent weights, which training updates in place; one row per member.
        chunks, chunk_groups: layout of a row.
        sampled: positions whose change events are stored; None for all.
    """

    def __init__(
        self,
        weights: Tensor,
        chunks: Sequence[Chunk],
        chunk_groups: Sequence[ChunkGroup],
        sampled: Tensor | None = None,
    ) -> None:
        members, self._size = weights.shape
        self.weights, self.previous = weights, weights.clone(memory_format=torch.contiguous_format)
        self.level = torch.zeros_like(self.previous)
        self._count = torch.zeros_like(self.previous, dtype=torch.int32)
        _compute_levels(chunk_groups, weights, self.level)
        self._hash = self.level.long()
        self._path = torch.zeros(members, len(chunks), dtype=torch.float64, device=weights.device)
        # Views are created once: on small networks, creating a view takes as long as an operation on it.
        buffers = (self.weights, self.previous, self.level)
        # A scalar range divides the sum of a chunk; a range by weight divides the terms.
        ranges = [(chunk, chunk.quantizer.max) for chunk in chunks]
        self._ranges = self._path.new_tensor([1.0 if isinstance(max_, Tensor) else max_ for _, max_ in ranges])
        distances = ((self.previous[:, chunk.where], m if isinstance(m, Tensor) else None) for chunk, m in ranges)
        self._chunk_groups = [
            (group, [values[:, group.where] for values in buffers], [next(distances) for _ in group.chunks])
            for group in chunk_groups
        ]
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights[0], dtype=torch.bool)
            self._is_sampled[sampled] = True
        self._pending: list[tuple[int, Tensor, Tensor]] = []  # step, changed positions in all rows, their new levels
        rows = zip(weights, self.previous, self.level, self._count, self._hash, self._path, strict=True)
        self._members = [
            Trajectory(chunks, chunk_groups, row, previous, level, count, hash_, path, ChangeSequences(level, sampled))
            for row, previous, level, count, hash_, path in rows
        ]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        return self._members[number]

    def observe(self, step: int, levels: Iterable[Tensor]) -> None:
        """Records the weights after optimizer step ``step`` (1, 2, …), given their levels by chunk group.

        Counts, hashes and sequences are updated by ``settle``.
        """
        path_sums, changed = [], []
        # One chunk group at a time, which fits into the processor's cache.
        for (group, (weights, previous, level), distances), new_level in zip(self._chunk_groups, levels, strict=True):
            member, position = (new_level - level).nonzero(as_tuple=True)
            changed.append(position.add_(group.where.start).add_(member, alpha=self._size))
            level.copy_(new_level)
            previous.sub_(weights).abs_()  # now holds |Δw|, and so do its views in distances
            path_sums += [values.sum(1) if max_ is None else (values / max_).sum(1) for values, max_ in distances]
            previous.copy_(weights)
        if path_sums:
            self._path += torch.stack(path_sums, 1) / self._ranges
            positions = torch.cat(changed)
            self._pending.append((step, positions, self.level.view(-1)[positions]))

    @property
    def full(self) -> bool:
        """Whether enough changes are pending to call ``settle``."""
        pending_changes = sum(len(positions) for _, positions, _ in self._pending)
        return len(self._pending) >= MAX_PENDING_STEPS or pending_changes > MAX_PENDING_CHANGES

    def settle(self) -> list[Changes]:
        """Updates counts, hashes and sequences with all pending changes; returns these by member."""
        if not self._pending:
            return []
        positions = torch.cat([positions for _, positions, _ in self._pending])
        levels = torch.cat([levels for _, _, levels in self._pending])
        steps = torch.cat([torch.full_like(positions, step) for step, positions, _ in self._pending])
        self._pending = []
        order = positions.argsort(stable=True)
        positions, levels, steps = positions[order], levels[order], steps[order]
        hashes, ranks = self._hash.view(-1), _rank_among_equals(positions)
        for rank in range(int(ranks.max()) + 1 if len(ranks) else 0):
            selected = ranks == rank
            hashes[positions[selected]] = _extend_hash(hashes[positions[selected]], levels[selected].long())
        self._count.view(-1).index_add_(0, positions, torch.ones_like(positions, dtype=self._count.dtype))
        by_member = positions.div(self._size, rounding_mode="floor").bincount(minlength=len(self)).tolist()
        columns = (values.split(by_member) for values in (positions, steps, levels))
        changes = []
        for number, (flat_positions, member_steps, member_levels) in enumerate(zip(*columns, strict=True)):
            changes.append(Changes(flat_positions - number * self._size, member_steps))
            keep = slice(None) if self._is_sampled is None else self._is_sampled[changes[-1].positions]
            self[number].sequences.append(changes[-1].positions[keep], member_steps[keep], member_levels[keep])
        return changes


def _rank_among_equals(values: Tensor) -> Tensor:
    """Number of equal values before each value, for sorted values."""
    _, counts = values.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(values), device=values.device) - starts.repeat_interleave(counts)


def _compute_levels(chunk_groups: Sequence[ChunkGroup], weights: Tensor, level: Tensor) -> None:
    for chunk_group, indices in zip(chunk_groups, level_indices(chunk_groups, weights), strict=True):
        level[..., chunk_group.where] = indices


def _extend_hash(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence after appending ``level``; different sequences collide with probability 2^-64."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

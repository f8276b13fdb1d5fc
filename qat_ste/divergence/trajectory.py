"""Trajectories of the members' quantized weights: constant memory per weight, plus change events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat_ste.divergence.deferred import DeferredChanges, Located
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
        chunks, chunk_groups: layout of each row. Lengths are in units of the scales of the first row, the reference's.
        sampled: positions whose change events are stored; None for all.
    """

    def __init__(
        self,
        weights: Tensor,
        chunks: Sequence[Sequence[Chunk]],
        chunk_groups: Sequence[Sequence[ChunkGroup]],
        sampled: Tensor | None = None,
    ) -> None:
        members, self._size = weights.shape
        self.weights, self.previous = weights, weights.clone(memory_format=torch.contiguous_format)
        self.level = torch.zeros_like(self.previous)
        self._count = torch.zeros_like(self.previous, dtype=torch.int32)
        for groups, row, level in zip(chunk_groups, weights, self.level, strict=True):
            _compute_levels(groups, row, level)
        self._hash = self.level.long()
        self._path = torch.zeros(members, len(chunks[0]), dtype=torch.float64, device=weights.device)
        # Views are created once: on small networks, creating a view takes as long as an operation on it.
        buffers = (self.weights, self.previous, self.level)
        # A scalar range divides the sum of a chunk; a range by weight divides the terms.
        by_weight = [isinstance(chunk.quantizer.max, Tensor) for chunk in chunks[0]]
        pairs = list(zip(chunks[0], by_weight, strict=True))
        self._ranges = self._path.new_tensor([1.0 if tensor else chunk.quantizer.max for chunk, tensor in pairs])
        distances = ((self.previous[:, chunk.where], chunk if tensor else None) for chunk, tensor in pairs)
        self._chunk_groups = [
            (group, [values[:, group.where] for values in buffers], [next(distances) for _ in group.chunks])
            for group in chunk_groups[0]
        ]
        most_levels = max((group.quantizer.num_levels for group in chunk_groups[0]), default=0)
        self._deferred = DeferredChanges(most_levels) if asynchronous(weights.device) else None
        self._pending: list[Located] = []
        is_sampled = None
        if sampled is not None:  # shared by all members
            is_sampled = np.zeros(self._size, np.bool_)
            is_sampled[sampled.cpu().numpy()] = True
        buffers_by_row = (weights, self.previous, self.level, self._count, self._hash, self._path)
        rows = zip(chunks, chunk_groups, *buffers_by_row, strict=True)
        self._members = [
            Trajectory(
                of_row, groups, row, previous, level, count, hash_, path,
                ChangeSequences(level, sampled, is_sampled, self._deferred is not None),
            )
            for of_row, groups, row, previous, level, count, hash_, path in rows
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        return self._members[number]

    def observe(self, step: int, levels: Iterable[Tensor]) -> None:
        """Records the weights after optimizer step ``step`` (1, 2, …), given their levels by chunk group.

        Counts, hashes and sequences are updated by ``settle``.
        """
        path_sums, changed = [], []
        if self._deferred is not None:
            self._deferred.start(self.level)
        # One chunk group at a time, which fits into the processor's cache.
        for (group, (weights, previous, level), distances), new_level in zip(self._chunk_groups, levels, strict=True):
            if self._deferred is None:
                member, position = (new_level - level).nonzero(as_tuple=True)
                changed.append(position.add_(group.where.start).add_(member, alpha=self._size))
            level.copy_(new_level)
            previous.sub_(weights).abs_()  # now holds |Δw|, and so do its views in distances
            path_sums += [
                values.sum(1) if chunk is None else (values / chunk.quantizer.max).sum(1) for values, chunk in distances
            ]
            previous.copy_(weights)
        if path_sums:
            self._path += torch.stack(path_sums, 1) / self._ranges
            if self._deferred is None:
                positions = torch.cat(changed)
                self._pending.append((step, positions, self.level.view(-1)[positions], None))
            else:
                self._pending += self._deferred.add(step, self.level)

    @property
    def full(self) -> bool:
        """Whether enough changes are pending to call ``settle``."""
        pending_changes = sum(len(positions) for _, positions, _, _ in self._pending)
        return len(self._pending) >= MAX_PENDING_STEPS or pending_changes > MAX_PENDING_CHANGES

    def settle(self, wait: bool = True) -> list[Changes]:
        """Updates counts, hashes and sequences with all pending changes; returns these by member.

        Args:
            wait: false leaves out the last steps on a GPU, whose changes are not known without waiting for it.
        """
        if wait and self._deferred is not None:
            self._pending += self._deferred.rest()
        if not self._pending:
            return []
        hashes = self._hash.view(-1)
        for _, positions, levels, _ in self._pending:  # a weight changes once in a step
            hashes[positions] = _extend_hash(hashes[positions], levels.long())
        positions = torch.cat([positions for _, positions, _, _ in self._pending])
        levels = torch.cat([levels for _, _, levels, _ in self._pending])
        steps = torch.cat([torch.full_like(positions, step) for step, positions, _, _ in self._pending])
        by_member = self._by_member(positions)
        self._pending = []
        order = positions.argsort(stable=True)
        positions, levels, steps = positions[order], levels[order], steps[order]
        self._count.view(-1).index_add_(0, positions, torch.ones_like(positions, dtype=self._count.dtype))
        columns = (values.split(by_member) for values in (positions, steps, levels))
        changes = []
        for number, (flat_positions, member_steps, member_levels) in enumerate(zip(*columns, strict=True)):
            changes.append(Changes(flat_positions - number * self._size, member_steps))
            self[number].sequences.append(changes[-1].positions, member_steps, member_levels)
        return changes

    def _by_member(self, positions: Tensor) -> list[int]:
        """The number of pending changes of each member."""
        if self._deferred is None:
            return positions.div(self._size, rounding_mode="floor").bincount(minlength=len(self)).tolist()
        return [sum(counts) for counts in zip(*(counts for *_, counts in self._pending if counts), strict=True)]


def asynchronous(device: torch.device) -> bool:
    """Whether operations on this device run while Python goes on, so that reading a result waits for all of them."""
    return device.type != "cpu"


def _compute_levels(chunk_groups: Sequence[ChunkGroup], weights: Tensor, level: Tensor) -> None:
    for chunk_group, indices in zip(chunk_groups, level_indices(chunk_groups, weights), strict=True):
        level[..., chunk_group.where] = indices


def _extend_hash(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence after appending ``level``; different sequences collide with probability 2^-64."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

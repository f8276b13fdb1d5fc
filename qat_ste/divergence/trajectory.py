"""Trajectories of the members' weights: constant memory per weight, plus change events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.sequences import ChangeSequences
from qat_ste.fake_quant.flat_layout import Chunk, ChunkGroup, level_indices

# Changes are settled after this many steps, or this many changes.
MOST_STEPS, MOST_CHANGES = 64, 1_000_000


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of quantized weights of one member.

    ``path`` is Σ|Δw|/max over all steps by chunk, float64; ``previous`` the weights before the next ``observe``.
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
        """Whether each weight ever changed its level."""
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
        _find_levels(self.chunk_groups, self.weights, self.level)


@dataclass(frozen=True)
class Changes:
    """The weights of one member that changed level, with the steps; ordered by ``positions``, then by ``steps``."""

    positions: Tensor
    steps: Tensor


class Trajectories(Sequence[Trajectory]):
    """The trajectories of all members, observed together: that takes hardly more operations than for one.

    Args:
        weights: flat latent weights that training changes, one row per member.
        chunks, chunk_groups: of a row.
        sampled: positions whose change events are kept; None for all.
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
        _find_levels(chunk_groups, weights, self.level)
        self._hash = self.level.long()
        self._path = torch.zeros(members, len(chunks), dtype=torch.float64, device=weights.device)
        # Views are made once: on small networks making one costs as much as an operation on it.
        buffers = (self.weights, self.previous, self.level)
        # A scalar range divides the sum of a chunk; a range per channel divides the terms.
        ranges = [(chunk, chunk.quantizer.max) for chunk in chunks]
        self._ranges = self._path.new_tensor([1.0 if isinstance(max_, Tensor) else max_ for _, max_ in ranges])
        paths = ((self.previous[:, chunk.where], m if isinstance(m, Tensor) else None) for chunk, m in ranges)
        self._chunk_groups = [
            (
                chunk_group,
                [values[:, chunk_group.where] for values in buffers],
                [next(paths) for _ in chunk_group.chunks],
            )
            for chunk_group in chunk_groups
        ]
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights[0], dtype=torch.bool)
            self._is_sampled[sampled] = True
        self._held: list[tuple[int, Tensor, Tensor]] = []
        rows = zip(weights, self.previous, self.level, self._count, self._hash, self._path, strict=True)
        self._members = [
            Trajectory(chunks, chunk_groups, own, previous, level, n, hash_, path, ChangeSequences(level, sampled))
            for own, previous, level, n, hash_, path in rows
        ]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        return self._members[number]

    def observe(self, step: int, levels: Iterable[Tensor]) -> None:
        """Records the weights after optimizer step ``step`` (1, 2, …), and their levels one chunk group at a time.

        Counts, hashes and sequences wait.
        """
        paths, found = [], []
        # A chunk group is small enough to stay in the cache meanwhile.
        for (chunk_group, (weights, previous, level), chunk_paths), index in zip(
            self._chunk_groups, levels, strict=True
        ):
            member, place = (index - level).nonzero(as_tuple=True)
            found.append(place.add_(chunk_group.where.start).add_(member, alpha=self._size))
            level.copy_(index)
            previous.sub_(weights).abs_()  # the distance that each weight moved
            paths += [distance.sum(1) if max_ is None else (distance / max_).sum(1) for distance, max_ in chunk_paths]
            previous.copy_(weights)
        if paths:
            self._path += torch.stack(paths, 1) / self._ranges
            places = torch.cat(found)
            self._held.append((step, places, self.level.view(-1)[places]))

    @property
    def full(self) -> bool:
        """Whether it is time to call ``settle``."""
        return len(self._held) >= MOST_STEPS or sum(len(places) for _, places, _ in self._held) > MOST_CHANGES

    def settle(self) -> list[Changes]:
        """Updates counts, hashes and sequences by the changes of many steps; returns the changes by member."""
        if not self._held:
            return []
        places = torch.cat([places for _, places, _ in self._held])
        levels = torch.cat([levels for _, _, levels in self._held])
        times = torch.cat([torch.full_like(places, step) for step, places, _ in self._held])
        self._held = []
        order = places.argsort(stable=True)
        places, levels, times = places[order], levels[order], times[order]
        hashes, numbers = self._hash.view(-1), _number_among_equals(places)
        for number in range(int(numbers.max()) + 1 if len(numbers) else 0):
            some = numbers == number
            hashes[places[some]] = _mix(hashes[places[some]], levels[some].long())
        self._count.view(-1).index_add_(0, places, torch.ones_like(places, dtype=self._count.dtype))
        by_member = places.div(self._size, rounding_mode="floor").bincount(minlength=len(self)).tolist()
        found = []
        for number, columns in enumerate(zip(*(of.split(by_member) for of in (places, times, levels)), strict=True)):
            found.append(Changes(columns[0] - number * self._size, columns[1]))
            keep = slice(None) if self._is_sampled is None else self._is_sampled[found[-1].positions]
            self[number].sequences.append(found[-1].positions[keep], columns[1][keep], columns[2][keep])
        return found


def _number_among_equals(values: Tensor) -> Tensor:
    """For each of these sorted values, the number of equal values before it."""
    _, counts = values.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(values), device=values.device) - starts.repeat_interleave(counts)


def _find_levels(chunk_groups: Sequence[ChunkGroup], weights: Tensor, level: Tensor) -> None:
    for chunk_group, found in zip(chunk_groups, level_indices(chunk_groups, weights), strict=True):
        level[..., chunk_group.where] = found


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

"""What is kept of the members' weights while they train: constant memory a weight, plus change events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat_ste.divergence.sequences import ChangeSequences
from qat_ste.fake_quant.flat_layout import Block, Piece, levels_of

# Changes of levels are worked through together, of so many steps or so many of them at most.
MOST_STEPS, MOST_CHANGES = 64, 1_000_000


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Levels, change counts, sequence hashes and path lengths of quantized weights of one member.

    ``path`` is Σ|Δw|/max over all steps by piece, float64; ``previous`` the weights before the next ``observe``.
    """

    pieces: Sequence[Piece]
    blocks: Sequence[Block]
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
        """All that the weights do not tell themselves."""
        return {"count": self.count, "hash": self.hash, "path": self.path, "sequences": self.sequences.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state; the weights have been restored before."""
        for name in ("count", "hash", "path"):
            getattr(self, name).copy_(state[name])
        self.sequences.load_state_dict(state["sequences"])
        self.previous.copy_(self.weights)
        _find_levels(self.blocks, self.weights, self.level)


@dataclass(frozen=True)
class Changes:
    """Of one member: which weights changed level, and at what step; ordered by ``positions``, then by ``steps``."""

    positions: Tensor
    steps: Tensor


class Trajectories(Sequence[Trajectory]):
    """Those of all members, whose steps are looked at together: that takes hardly more operations than for one.

    Args:
        weights: flat latent weights that change as training goes, a row a member.
        pieces, blocks: of a row.
        sampled: positions whose change events are kept; None for all.
    """

    def __init__(
        self, weights: Tensor, pieces: Sequence[Piece], blocks: Sequence[Block], sampled: Tensor | None = None
    ) -> None:
        members, self._size = weights.shape
        self.weights, self.previous = weights, weights.clone(memory_format=torch.contiguous_format)
        self.level = torch.zeros_like(self.previous)
        self._count = torch.zeros_like(self.previous, dtype=torch.int32)
        _find_levels(blocks, weights, self.level)
        self._hash = self.level.long()
        self._path = torch.zeros(members, len(pieces), dtype=torch.float64, device=weights.device)
        # Views that every step needs: making them costs as much as an operation on small networks' weights.
        buffers = (self.weights, self.previous, self.level)
        # A range that is one number divides the sum of a piece, another one what is summed.
        ranges = [(piece, piece.quantizer.max) for piece in pieces]
        self._ranges = self._path.new_tensor([1.0 if isinstance(max_, Tensor) else max_ for _, max_ in ranges])
        ways = ((self.previous[:, piece.where], m if isinstance(m, Tensor) else None) for piece, m in ranges)
        self._blocks = [
            (block, [values[:, block.where] for values in buffers], [next(ways) for _ in block.pieces])
            for block in blocks
        ]
        self._is_sampled: Tensor | None = None
        if sampled is not None:
            self._is_sampled = torch.zeros_like(weights[0], dtype=torch.bool)
            self._is_sampled[sampled] = True
        self._held: list[tuple[int, Tensor, Tensor]] = []
        rows = zip(weights, self.previous, self.level, self._count, self._hash, self._path, strict=True)
        self._members = [
            Trajectory(pieces, blocks, own, previous, level, n, hash_, path, ChangeSequences(level, sampled))
            for own, previous, level, n, hash_, path in rows
        ]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: Any) -> Any:
        return self._members[number]

    def observe(self, step: int, levels: Iterable[Tensor]) -> None:
        """Takes in the weights after optimizer step ``step`` (1, 2, …), and their levels block by block.

        Counts, hashes and sequences wait.
        """
        ways, found = [], []
        # A block is small enough to stay in the cache meanwhile.
        for (block, (weights, previous, level), of_pieces), index in zip(self._blocks, levels, strict=True):
            member, place = (index - level).nonzero(as_tuple=True)
            found.append(place.add_(block.where.start).add_(member, alpha=self._size))
            level.copy_(index)
            previous.sub_(weights).abs_()  # the way that each weight went
            ways += [way.sum(1) if max_ is None else (way / max_).sum(1) for way, max_ in of_pieces]
            previous.copy_(weights)
        if ways:
            self._path += torch.stack(ways, 1) / self._ranges
            places = torch.cat(found)
            self._held.append((step, places, self.level.view(-1)[places]))

    @property
    def full(self) -> bool:
        """Whether so much waits that it is time to ``settle``."""
        return len(self._held) >= MOST_STEPS or sum(len(places) for _, places, _ in self._held) > MOST_CHANGES

    def settle(self) -> list[Changes]:
        """Brings counts, hashes and sequences up to date: by the changes of many steps at once, given by member."""
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
    """Of each of these sorted values how many equal ones there are before it."""
    _, counts = values.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(values), device=values.device) - starts.repeat_interleave(counts)


def _find_levels(blocks: Sequence[Block], weights: Tensor, level: Tensor) -> None:
    for block, found in zip(blocks, levels_of(blocks, weights), strict=True):
        level[..., block.where] = found


def _mix(hash_: Tensor, level: Tensor) -> Tensor:
    """Hash of a sequence that continues with ``level``: equal for equal sequences, else equal by a 2^-64 chance."""
    hash_ = (hash_ + level + 1) * 6364136223846793005
    return hash_ ^ (hash_ >> 29)

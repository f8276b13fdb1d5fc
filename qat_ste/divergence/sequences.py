"""Change-point sequences of single weights, and their compression where a weight oscillates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Sequences of many weights, one after the other: entries ``offset[i]`` to ``offset[i + 1]`` are weight i's.

    Each starts with (initial level, step 0); ``oscillations`` counts what compression folded into an entry.
    """

    offset: np.ndarray
    level: np.ndarray
    time: np.ndarray
    oscillations: np.ndarray

    @cached_property
    def length(self) -> np.ndarray:
        return np.diff(self.offset)

    @cached_property
    def weight(self) -> np.ndarray:
        """The weight of each entry."""
        return np.repeat(np.arange(len(self.length)), self.length)


class ChangeSequences:
    """Collects the change events of the sampled weights; compresses them, so that oscillation costs no memory.

    Args:
        level: initial levels of all weights.
        sampled: positions of the weights whose events ``append`` receives; None for all.
    """

    LIMIT = 1_000_000  # events before compression, which takes about 50 bytes per event

    def __init__(self, level: Tensor, sampled: Tensor | None = None) -> None:
        self.sampled = np.arange(len(level)) if sampled is None else sampled.cpu().numpy()
        initial = level.cpu().numpy()[self.sampled].astype(np.int32)
        zeros = np.zeros_like(initial)
        self._sequences = Sequences(np.arange(len(initial) + 1), initial, zeros, zeros.copy())
        self._events: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def append(self, weights: Tensor, steps: Tensor, levels: Tensor) -> None:
        """``weights``: positions that changed, each in the order of its ``steps``; ``levels``: their new levels."""
        weight, time, level = (values.int().cpu().numpy() for values in (weights, steps, levels))
        self._events.append((weight, time, level))
        self._held += len(weights)
        if self._held > self.LIMIT:
            self.compressed()

    def state_dict(self) -> dict[str, Any]:
        """The sequences so far, compressed."""
        sequences = self.compressed()
        return {field.name: torch.from_numpy(getattr(sequences, field.name)) for field in fields(sequences)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved sequences of the same weights.

        Raises:
            ValueError: they are inconsistent, or belong to another number of weights.
        """
        saved = Sequences(**{name: values.numpy() for name, values in state.items()})
        sizes = {len(saved.level), len(saved.time), len(saved.oscillations)}
        whole = len(saved.offset) == len(self.sampled) + 1 and saved.offset[0] == 0 and sizes == {saved.offset[-1]}
        if not whole or (saved.length < 1).any():
            raise ValueError("change-point sequences are inconsistent")
        self._sequences = saved
        self._events, self._held = [], 0

    def compressed(self) -> Sequences:
        """All sequences so far, compressed (arXiv 2405.05171, appendix on metrics). More events may follow."""
        if self._events:
            old = self._sequences
            weights, times, levels = (np.concatenate(values) for values in zip(*self._events, strict=True))
            place = np.searchsorted(self.sampled, weights)
            weight = np.concatenate([old.weight, place])
            order = np.argsort(weight, kind="stable")
            level = np.concatenate([old.level, levels])[order]
            time = np.concatenate([old.time, times])[order]
            oscillations = np.concatenate([old.oscillations, np.zeros(len(place), np.int32)])[order]
            offset = np.concatenate([[0], np.bincount(weight, minlength=len(self.sampled)).cumsum()])
            self._sequences = compress(Sequences(offset, level, time, oscillations))
            self._events, self._held = [], 0
        return self._sequences


def compress(sequences: Sequences) -> Sequences:
    """Folds oscillations. Entries are pushed onto a stack; while its top four levels are x, y, x, y, the middle two
    are removed and the oscillation count of the remaining x grows by one.

    All weights are processed at once, entry by entry. One check after each push is enough: entries below the folded
    pair were checked when they were on top. Compressing a compressed sequence changes nothing.
    """
    longest_first = np.argsort(-sequences.length, kind="stable")
    lengths, starts = sequences.length[longest_first], sequences.offset[:-1][longest_first]
    level, time, oscillations = sequences.level.copy(), sequences.time.copy(), sequences.oscillations.copy()
    size = np.zeros_like(lengths)  # of the stack of each weight, stored in place of its sequence
    rounds = int(lengths[0]) if len(lengths) else 0
    active = np.searchsorted(-lengths, -np.arange(rounds), side="left")
    for entry in range(rounds):
        pushing = slice(0, active[entry])
        source, top = starts[pushing] + entry, starts[pushing] + size[pushing]
        level[top], time[top], oscillations[top] = level[source], time[source], oscillations[source]
        size[pushing] += 1
        tall = np.flatnonzero(size[pushing] >= 4)
        top = top[tall]
        folds = (level[top] == level[top - 2]) & (level[top - 1] == level[top - 3])
        top, folding = top[folds], tall[folds]
        level[top - 2], time[top - 2], oscillations[top - 2] = level[top], time[top], oscillations[top]
        oscillations[top - 3] += 1
        size[folding] -= 2
    kept = np.empty_like(size)
    kept[longest_first] = size
    weight = sequences.weight
    inside = np.arange(len(level)) - sequences.offset[weight] < kept[weight]
    offset = np.concatenate([[0], kept.cumsum()])
    return Sequences(offset, level[inside], time[inside], oscillations[inside])

"""Change-point sequences of weights, and their compression, which folds oscillations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat_ste.divergence.deferred import Sent


@dataclass(frozen=True)
class Sequences:
    """Concatenated change-point sequences: entries ``offset[i]`` to ``offset[i + 1]`` belong to weight i.

    Each sequence starts with (initial level, step 0); ``oscillations`` counts the oscillations folded into an entry.
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
        """Index of the weight that each entry belongs to."""
        return np.repeat(np.arange(len(self.length)), self.length)


class ChangeSequences:
    """Collects the level changes of sampled weights; regular compression bounds the memory that oscillations take.

    Args:
        level: initial levels of all weights.
        sampled: positions of the weights whose changes are collected, ascending; None for all.
        is_sampled: for each weight whether it is among ``sampled``; None for all.
        deferred: whether changes come from a GPU, which is not waited for.
    """

    LIMIT = 1_000_000  # pending events that trigger compression, which temporarily takes about 50 bytes per event

    def __init__(
        self,
        level: Tensor,
        sampled: Tensor | None = None,
        is_sampled: np.ndarray | None = None,
        deferred: bool = False,
    ) -> None:
        self.sampled = np.arange(len(level)) if sampled is None else sampled.cpu().numpy()
        self._is_sampled = is_sampled
        self._deferred = deferred
        initial = level.cpu().numpy()[self.sampled].astype(np.int32)
        zeros = np.zeros_like(initial)
        self._sequences = Sequences(np.arange(len(initial) + 1), initial, zeros, zeros.copy())
        self._sent: Sent | None = None  # the last changes, which a GPU may still be computing
        self._events: list[np.ndarray] = []  # weights, times and levels; of shape (3, changes)
        self._pending = 0

    def append(self, weights: Tensor, steps: Tensor, levels: Tensor) -> None:
        """Adds changes: positions, ascending in ``steps`` for each weight, and new levels; all of shape (changes,)."""
        self._receive()
        if self._pending > self.LIMIT:
            self.compressed()
        self._sent = Sent(torch.stack([values.int() for values in (weights, steps, levels)]))
        if not self._deferred:
            self._receive()

    def _receive(self) -> None:
        """Adds what was sent by the last ``append`` to the events, as far as its weights are sampled."""
        if self._sent is not None:
            event, self._sent = self._sent.read(), None
            if self._is_sampled is not None:
                event = event[:, self._is_sampled[event[0]]]
            self._events.append(event)
            self._pending += event.shape[1]

    def state_dict(self) -> dict[str, Any]:
        """The compressed sequences."""
        sequences = self.compressed()
        return {field.name: torch.from_numpy(getattr(sequences, field.name)) for field in fields(sequences)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the sequences of the same weights.

        Raises:
            ValueError: the saved arrays are inconsistent, or are of another number of weights.
        """
        saved = Sequences(**{name: values.numpy() for name, values in state.items()})
        sizes = {len(saved.level), len(saved.time), len(saved.oscillations)}
        consistent = len(saved.offset) == len(self.sampled) + 1 and saved.offset[0] == 0 and sizes == {saved.offset[-1]}
        if not consistent or (saved.length < 1).any():
            raise ValueError("change-point sequences are inconsistent")
        self._sequences = saved
        self._sent, self._events, self._pending = None, [], 0

    def compressed(self) -> Sequences:
        """Compressed sequences of all changes so far (paper, metric 3); more changes may be appended later."""
        self._receive()
        if self._events:
            old = self._sequences
            weights, times, levels = np.concatenate(self._events, axis=1)
            indices = np.searchsorted(self.sampled, weights)
            weight = np.concatenate([old.weight, indices])
            order = np.argsort(weight, kind="stable")
            level = np.concatenate([old.level, levels])[order]
            time = np.concatenate([old.time, times])[order]
            oscillations = np.concatenate([old.oscillations, np.zeros(len(indices), np.int32)])[order]
            offset = np.concatenate([[0], np.bincount(weight, minlength=len(self.sampled)).cumsum()])
            self._sequences = compress(Sequences(offset, level, time, oscillations))
            self._events, self._pending = [], 0
        return self._sequences


def compress(sequences: Sequences) -> Sequences:
    """Folds oscillations (paper, metric 3).

    Entries are pushed onto a stack from left to right. While the top four levels are x, y, x, y, the middle two are
    removed and the oscillation count of the remaining x increases by one. Compression is idempotent.
    """
    # One check per push suffices: entries below a folded pair were already checked when they were on top.
    longest_first = np.argsort(-sequences.length, kind="stable")
    lengths, starts = sequences.length[longest_first], sequences.offset[:-1][longest_first]
    level, time, oscillations = sequences.level.copy(), sequences.time.copy(), sequences.oscillations.copy()
    size = np.zeros_like(lengths)  # of each weight's stack, which overwrites the start of its sequence
    longest = int(lengths[0]) if len(lengths) else 0
    active_counts = np.searchsorted(-lengths, -np.arange(longest), side="left")
    for entry in range(longest):
        active = slice(0, active_counts[entry])
        source, top = starts[active] + entry, starts[active] + size[active]
        level[top], time[top], oscillations[top] = level[source], time[source], oscillations[source]
        size[active] += 1
        tall = np.flatnonzero(size[active] >= 4)
        top = top[tall]
        folds = (level[top] == level[top - 2]) & (level[top - 1] == level[top - 3])
        top, folding = top[folds], tall[folds]
        level[top - 2], time[top - 2], oscillations[top - 2] = level[top], time[top], oscillations[top]
        oscillations[top - 3] += 1
        size[folding] -= 2
    new_length = np.empty_like(size)
    new_length[longest_first] = size
    weight = sequences.weight
    remaining = np.arange(len(level)) - sequences.offset[weight] < new_length[weight]
    offset = np.concatenate([[0], new_length.cumsum()])
    return Sequences(offset, level[remaining], time[remaining], oscillations[remaining])

"""Reads what a GPU computes some steps later, so that training need not wait for it."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

STEPS = 2  # between counting a step's changes and locating them
Located = tuple[int, Tensor, Tensor, list[int] | None]  # step, positions in all rows, new levels, changes by member


class Sent:
    """A tensor on its way to the host; ``read`` waits until it has arrived."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> np.ndarray:
        """The values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.numpy()


class DeferredChanges:
    """Locates the changes of level of a step ``STEPS`` later.

    ``nonzero`` waits until a GPU has done all its work, since values decide the size of its result. So each step only
    counts its changes and sends the counts to the host, which have arrived when the changes are located. Until then,
    the levels of these steps are kept: a byte per weight, member and step for up to 256 levels.
    """

    def __init__(self, num_levels: int) -> None:
        self._dtype = torch.uint8 if num_levels <= 256 else torch.int32
        self._latest: Tensor | None = None
        self._steps: deque[tuple[int, Tensor, Tensor, Sent]] = deque()

    def start(self, level: Tensor) -> None:
        """Receives the levels before a step; one row per member."""
        if self._latest is None:
            self._latest = level.to(self._dtype)

    def add(self, step: int, level: Tensor) -> list[Located]:
        """Counts the changes of a step, given the levels after it; returns those located now."""
        assert self._latest is not None
        before, self._latest = self._latest, level.to(self._dtype)
        counts = torch.stack([(now != then).sum() for now, then in zip(self._latest, before, strict=True)])
        self._steps.append((step, before, self._latest, Sent(counts)))
        return self._located(keep=STEPS)

    def rest(self) -> list[Located]:
        """Waits for all steps and returns the changes not located before."""
        self._latest = None
        return self._located(keep=0)

    def _located(self, keep: int) -> list[Located]:
        located: list[Located] = []
        while len(self._steps) > keep:
            step, before, after, sent = self._steps.popleft()
            counts = sent.read().tolist()
            positions = _positions((after != before).view(-1), sum(counts))
            located.append((step, positions, after.view(-1)[positions], counts))
        return located


def _positions(flags: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` flags that are set; waits for a GPU only before torch 2.7."""
    try:
        return torch.nonzero_static(flags, size=count).view(-1)
    except NotImplementedError:
        return flags.nonzero().view(-1)

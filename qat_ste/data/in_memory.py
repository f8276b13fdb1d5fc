"""A data set held in memory as tensors, and its batches in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Split:
    """Images (float32, N x channels x height x width) and labels (int64, N)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images with the number of their classes."""

    train: Split
    test: Split
    num_classes: int


class InMemoryBatches:
    """Endless training batches of constant size.

    With ``shuffle``, epoch e runs through a permutation that is a function of (seed, e), and an incomplete last
    batch is left out; without, the split is read in file order, wrapping around (the paper's keras set-up).

    Raises:
        ValueError: the batch is larger than the split.
    """

    def __init__(self, split: Split, batch_size: int, shuffle: bool, seed: int) -> None:
        if not 1 <= batch_size <= len(split):
            raise ValueError(f"batch_size must be from 1 to {len(split)}, the number of images, got {batch_size}")
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self._order: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.split) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Batch:
        """The batch of this step, whatever was read before."""
        rows = self._rows(step)
        return self.split.images[rows], self.split.labels[rows]

    def _rows(self, step: int) -> Tensor:
        if not self.shuffle:
            first = step * self.batch_size
            return torch.arange(first, first + self.batch_size, device=self.split.labels.device) % len(self.split)
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self.split), generator=generator)
            self._order = (epoch, order.to(self.split.labels.device))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]


class EvaluationBatches:
    """The whole split once, in order."""

    def __init__(self, split: Split, batch_size: int = 1000) -> None:
        self.split, self.batch_size = split, batch_size

    def __iter__(self) -> Iterator[Batch]:
        return zip(self.split.images.split(self.batch_size), self.split.labels.split(self.batch_size), strict=True)

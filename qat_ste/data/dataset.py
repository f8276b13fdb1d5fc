"""What the command asks of a data set, whether it lives in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


class Shard(NamedTuple):
    """The part of every global batch that one of several ranks reads."""

    rank: int = 0
    ranks: int = 1


class TrainingBatches(Protocol):
    """Endless batches of constant size that depend on (seed, step) alone."""

    @property
    def steps_per_epoch(self) -> int: ...

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The batches of ``step``, ``step + 1``, …, whatever was read before; what reads them ahead starts now."""


class Dataset(Protocol):
    """Images for training and testing; batches are (float32 N x channels x height x width, int64 N) on a device."""

    num_classes: int
    image_shape: tuple[int, int, int]  # channels, height, width of what a model gets

    @property
    def fingerprint(self) -> str:
        """Equal for equal images: a run is not continued on others."""

    @property
    def skipped(self) -> list[str]:
        """Images left out so far because they could not be read."""

    def prepare(self) -> None:
        """What has to be done before the first batch; of several ranks one does it and the others wait."""

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> TrainingBatches:
        """This shard of global batches of ``batch_size``.

        Raises:
            ValueError: the batch is larger than the split, or the ranks do not divide it.
        """

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> Iterable[Batch]:
        """The test images once, in order; of several ranks each reads a part."""

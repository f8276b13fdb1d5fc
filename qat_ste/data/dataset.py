"""The interface of data sets, in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError

Batch = tuple[Tensor, Tensor]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device; a copy from the CPU to a GPU is not waited for."""
    from_cpu = values.device.type == "cpu"
    if from_cpu and device.type == "cuda":  # from pinned memory of our own, as a loader may write to its own again
        values = torch.empty_like(values, pin_memory=True).copy_(values)
    return values.to(device, non_blocking=from_cpu)


class Shard(NamedTuple):
    """Selects the part of every global batch that rank ``rank`` of ``ranks`` reads."""

    rank: int = 0
    ranks: int = 1

    def of_batch(self, batch_size: int, size: int, unit: str) -> slice:
        """The rows of a batch that the rank reads.

        Args:
            size: of the split, in ``unit``.

        Raises:
            ArgumentError: the batch is larger than the split, or not divisible by the number of ranks.
        """
        if not 1 <= batch_size <= size:
            raise ArgumentError("batch_size", batch_size, f"from 1 to {size}, the number of {unit}")
        if batch_size % self.ranks:
            raise ArgumentError("batch_size", batch_size, f"a multiple of {self.ranks}, the number of ranks")
        share = batch_size // self.ranks
        return slice(self.rank * share, (self.rank + 1) * share)


class TrainingBatches(Protocol):
    """Endless batches of constant size that depend on (seed, step) alone."""

    @property
    def steps_per_epoch(self) -> int: ...

    def starting_at(self, step: int) -> Iterator[Batch]:
        """Batches of ``step``, ``step + 1``, …, independent of earlier reads; prefetching, if any, starts now."""


class Dataset(Protocol):
    """Images for training and testing; batches are (float32 N x channels x height x width, int64 N) on a device.

    A data set of another kind has a ``task`` in place of the first two attributes; see ``qat_ste.data.task.Task``.
    """

    num_classes: int
    image_shape: tuple[int, int, int]  # channels, height, width of the model's input

    @property
    def fingerprint(self) -> str:
        """Identifies the images: a run resumes only on a data set of equal fingerprint."""

    @property
    def skipped(self) -> list[str]:
        """Paths of unreadable images skipped so far."""

    def prepare(self) -> None:
        """Does one-time work before the first batch; with several ranks, one does it while the others wait."""

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> TrainingBatches:
        """This shard of global batches of ``batch_size`` images.

        Raises:
            ArgumentError: the batch is larger than the split, or not divisible by the number of ranks.
        """

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> Iterable[Batch]:
        """All test images once, in order; each of several ranks reads a part."""

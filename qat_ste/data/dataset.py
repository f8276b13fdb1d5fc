"""The interface of data sets, in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qat_ste.base.errors import SEED, ArgumentError, require

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

    def with_validation(self, seed: int) -> DatasetWithValidation:
        """A copy that trains without a validation split; the test images stay the same.

        Only tuning needs this method: a data set without it can be used for everything else.

        Args:
            seed: draws the split. The fingerprint of the copy depends on it.

        Raises:
            ArgumentError: the seed is not allowed, or there are too few images.
        """


class DatasetWithValidation(Dataset, Protocol):
    """A data set whose training batches leave out a validation split."""

    def validation_batches(self, device: torch.device, shard: Shard = Shard()) -> Iterable[Batch]:
        """The whole validation split once, in order, prepared as test images; each of several ranks reads a part."""


def split_generator(validation_seed: int | None) -> torch.Generator:
    """The generator that draws a validation split.

    Raises:
        ArgumentError: the data set has no validation split, or the seed is not allowed.
    """
    if validation_seed is None:
        raise ArgumentError("validation_seed", None, "set by with_validation")
    require(SEED, seed=validation_seed)
    return torch.Generator().manual_seed(validation_seed)


def split_rows(groups: Sequence[tuple[int, int]], validation_seed: int | None) -> tuple[Tensor, Tensor]:
    """The rows for training and those of the validation split, both in order.

    Args:
        groups: (size, held out) of consecutive groups of rows. From each group that many rows are drawn.
    """
    generator = split_generator(validation_seed)
    held_out = torch.cat([torch.randperm(size, generator=generator) < number for size, number in groups])
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def split_fingerprint(fingerprint: str, validation_seed: int | None) -> str:
    """The fingerprint of a data set, from that of all its data and the seed of its validation split, if it has one."""
    if validation_seed is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} validation {validation_seed}".encode()).hexdigest()[:16]

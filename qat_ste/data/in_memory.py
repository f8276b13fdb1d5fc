"""Data sets in memory, with batches in an order that depends on seed and epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qat_ste.base.errors import Number, require
from qat_ste.data.dataset import Batch, Shard, split_fingerprint, split_rows, to_device


@dataclass(frozen=True)
class Split:
    """Images (float32, N x channels x height x width) and labels (int64, N)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def at(self, rows: Tensor) -> Split:
        """The images and labels at these rows."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class InMemoryDataset:
    """Training and test images in memory.

    Attributes:
        train: training images, with those of the validation split.
        held_out: number of images of a validation split; None: a tenth of the training images.
        validation_seed: draws the validation split; None: there is none, all of ``train`` is for training.
    """

    train: Split
    test: Split
    num_classes: int
    held_out: int | None = None
    validation_seed: int | None = None
    skipped = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        sample = self.train.images[::97].contiguous().numpy()
        digest = hashlib.sha256(self.train.labels.numpy().tobytes() + sample.tobytes()).hexdigest()[:16]
        return split_fingerprint(digest, self.validation_seed)

    def prepare(self) -> None:
        """Does nothing."""

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> InMemoryBatches:
        train = self.train if self.validation_seed is None else self.train.at(self._split_rows()[0])
        return InMemoryBatches(train.to(device), batch_size, shuffle, seed, shard)

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> EvaluationBatches:
        return EvaluationBatches(self.test.to(device), shard=shard)

    def with_validation(self, seed: int) -> InMemoryDataset:
        dataset = replace(self, validation_seed=seed)
        dataset._split_rows()  # checks the arguments
        return dataset

    def validation_batches(self, device: torch.device, shard: Shard = Shard()) -> EvaluationBatches:
        return EvaluationBatches(self.train.at(self._split_rows()[1]).to(device), shard=shard)

    def _split_rows(self) -> tuple[Tensor, Tensor]:
        held_out = max(1, len(self.train) // 10) if self.held_out is None else self.held_out
        require(Number(1, len(self.train) - 1), held_out=held_out)
        return split_rows([(len(self.train), held_out)], self.validation_seed)


class EpochOrder:
    """Selects the rows of each batch.

    With ``shuffle``, epoch e follows a permutation that depends on (seed, e) alone, and an incomplete last batch is
    dropped; without, rows are read in order, wrapping around (the paper's keras set-up).

    Raises:
        ArgumentError: the batch is larger than the split, or not divisible by the number of ranks.
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, shard: Shard = Shard()) -> None:
        self._share = shard.of_batch(batch_size, size, "images")
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self._permutation: tuple[int, Tensor] | None = None  # epoch, rows

    @property
    def steps_per_epoch(self) -> int:
        """Batches per pass over the images."""
        return self.size // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def rows(self, step: int) -> Tensor:
        """Rows of this shard of the batch at ``step``."""
        if not self.shuffle:
            first = step * self.batch_size
            return torch.arange(first, first + self.batch_size)[self._share] % self.size
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._permutation is None or self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._permutation = (epoch, torch.randperm(self.size, generator=generator))
        return self._permutation[1][number * self.batch_size : (number + 1) * self.batch_size][self._share]


class InMemoryBatches:
    """Endless training batches in the order of ``EpochOrder``."""

    def __init__(self, split: Split, batch_size: int, shuffle: bool, seed: int, shard: Shard = Shard()) -> None:
        self.split = split
        self.order = EpochOrder(len(split), batch_size, shuffle, seed, shard)
        self.steps_per_epoch = self.order.steps_per_epoch

    def starting_at(self, step: int) -> Iterator[Batch]:
        while True:
            rows = to_device(self.order.rows(step), self.split.labels.device)
            yield self.split.images[rows], self.split.labels[rows]
            step += 1


class EvaluationBatches:
    """All images of a split once, in order; rank r of R reads every R-th batch, starting with the r-th."""

    def __init__(self, split: Split, batch_size: int = 1000, shard: Shard = Shard()) -> None:
        self.split, self.batch_size, self.shard = split, batch_size, shard

    def __iter__(self) -> Iterator[Batch]:
        images, labels = (values.split(self.batch_size) for values in (self.split.images, self.split.labels))
        share = slice(self.shard.rank, None, self.shard.ranks)
        return zip(images[share], labels[share], strict=True)

"""Crops of images: random ones for training, which depend on (seed, epoch, index) alone; central ones for testing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from qat_ste.data.image_files import BrokenImageError
from qat_ste.data.in_memory import EpochOrder


class ImageSource(Protocol):
    """Reads images, from their files or from the cache."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor: ...


class ImageSubset:
    """The images of a source at these rows."""

    def __init__(self, source: ImageSource, rows: Tensor) -> None:
        self.source, self.rows = source, rows
        self.labels = source.labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Tensor:
        return self.source.read(int(self.rows[index]))


class CropBatch(NamedTuple):
    """Images of equal size (uint8, height x width x channels), their labels, and errors of images that were skipped."""

    images: list[Tensor]
    labels: list[int]
    broken: list[BrokenImageError]


class RandomCrops:
    """RandomResizedCrop and RandomHorizontalFlip that depend on (seed, epoch, index) alone; keys are (epoch, index)."""

    def __init__(self, source: ImageSource, size: int, seed: int, skip: bool) -> None:
        self.source, self.size, self.seed, self.skip = source, size, seed, skip
        self._crop = v2.RandomResizedCrop(size, antialias=True)

    def __call__(self, keys: Sequence[tuple[int, int]]) -> CropBatch:
        batch = CropBatch([], [], [])
        with torch.random.fork_rng(devices=[]):
            for epoch, index in keys:
                image, label = self._read_or_next(index, batch.broken)
                digest = hashlib.blake2b(f"{self.seed} {epoch} {index}".encode(), digest_size=8).digest()
                # Until CUDA is initialized, each call of torch.manual_seed stores a stack trace.
                torch.default_generator.manual_seed(int.from_bytes(digest))
                batch.images.append(self._augment(image))
                batch.labels.append(label)
        return batch

    def _read_or_next(self, index: int, broken: list[BrokenImageError]) -> tuple[Tensor, int]:
        """Reads the image; replaces a broken one by the next readable one if skipping, to keep the batch size."""
        for candidate in itertools.chain(range(index, len(self.source)), range(index)):
            try:
                return self.source.read(candidate), int(self.source.labels[candidate])
            except BrokenImageError as error:
                if not self.skip:
                    raise
                broken.append(error)
        raise ValueError(f"none of the {len(self.source)} training images can be read; last error: {broken[-1]}")

    def _augment(self, image: Tensor) -> Tensor:
        crop = self._crop.make_params([image])
        rows = slice(crop["top"], crop["top"] + crop["height"])
        columns = slice(crop["left"], crop["left"] + crop["width"])
        # Making the crop contiguous halves the time of the resize; the result is bit-identical.
        image = image.permute(1, 2, 0)[rows, columns].contiguous().permute(2, 0, 1)
        image = functional.resize(image, [self.size, self.size], antialias=True)
        if torch.rand(1) < 0.5:
            image = functional.horizontal_flip(image)
        return image.permute(1, 2, 0)


class CentreCrops:
    """Centre crops of images resized to ``resize`` on the shorter side; keys are indices."""

    def __init__(self, source: ImageSource, size: int, resize: int, skip: bool) -> None:
        self.source, self.size, self.skip = source, size, skip
        self._transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])

    def __call__(self, keys: Sequence[int]) -> CropBatch:
        batch = CropBatch([], [], [])
        for index in keys:
            try:
                image = self.source.read(index)
            except BrokenImageError as error:
                if not self.skip:
                    raise
                batch.broken.append(error)
            else:
                batch.images.append(self._transform(image).permute(1, 2, 0))
                batch.labels.append(int(self.source.labels[index]))
        return batch


def training_keys(order: EpochOrder, first: int) -> Iterator[list[tuple[int, int]]]:
    """Yields endless batches of keys (epoch, index), starting at step ``first``."""
    for step in itertools.count(first):
        epoch = order.epoch(step)
        yield [(epoch, index) for index in order.rows(step).tolist()]

"""Crops of images: at random for training, a function of (seed, epoch, index) alone; in the centre for testing."""

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


class Images(Protocol):
    """Where images come from: their files or the cache."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor: ...


class Cropped(NamedTuple):
    """Images of one size, uint8, height x width x channels, with labels, and those left out as broken."""

    images: list[Tensor]
    labels: list[int]
    broken: list[BrokenImageError]


class RandomCrops:
    """RandomResizedCrop and RandomHorizontalFlip, a function of (seed, epoch, index) alone; keys are (epoch, index)."""

    def __init__(self, images: Images, size: int, seed: int, skip: bool) -> None:
        self.images, self.size, self.seed, self.skip = images, size, seed, skip
        self._crop = v2.RandomResizedCrop(size, antialias=True)

    def __call__(self, keys: Sequence[tuple[int, int]]) -> Cropped:
        cropped = Cropped([], [], [])
        with torch.random.fork_rng(devices=[]):
            for epoch, index in keys:
                image, label = self._readable(index, cropped.broken)
                digest = hashlib.blake2b(f"{self.seed} {epoch} {index}".encode(), digest_size=8).digest()
                # torch.manual_seed would store a stack trace a call where CUDA has not started yet
                torch.default_generator.manual_seed(int.from_bytes(digest))
                cropped.images.append(self._augment(image))
                cropped.labels.append(label)
        return cropped

    def _readable(self, index: int, broken: list[BrokenImageError]) -> tuple[Tensor, int]:
        """The image or, if broken ones are skipped, the next that can be read, so that the batch keeps its size."""
        for candidate in itertools.chain(range(index, len(self.images)), range(index)):
            try:
                return self.images.read(candidate), int(self.images.labels[candidate])
            except BrokenImageError as error:
                if not self.skip:
                    raise
                broken.append(error)
        raise ValueError(f"not one of {len(self.images)} training images can be read; the last: {broken[-1]}")

    def _augment(self, image: Tensor) -> Tensor:
        place = self._crop.make_params([image])
        rows = slice(place["top"], place["top"] + place["height"])
        columns = slice(place["left"], place["left"] + place["width"])
        # A contiguous crop halves the time of the resize and changes no bit of it.
        image = image.permute(1, 2, 0)[rows, columns].contiguous().permute(2, 0, 1)
        image = functional.resize(image, [self.size, self.size], antialias=True)
        if torch.rand(1) < 0.5:
            image = functional.horizontal_flip(image)
        return image.permute(1, 2, 0)


class CentreCrops:
    """Centre crops of images resized to ``resize`` on the shorter side; keys are indices."""

    def __init__(self, images: Images, size: int, resize: int, skip: bool) -> None:
        self.images, self.size, self.skip = images, size, skip
        self._transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])

    def __call__(self, keys: Sequence[int]) -> Cropped:
        cropped = Cropped([], [], [])
        for index in keys:
            try:
                image = self.images.read(index)
            except BrokenImageError as error:
                if not self.skip:
                    raise
                cropped.broken.append(error)
            else:
                cropped.images.append(self._transform(image).permute(1, 2, 0))
                cropped.labels.append(int(self.images.labels[index]))
        return cropped


def training_keys(order: EpochOrder, first: int) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of keys (epoch, index), from step ``first`` on."""
    for step in itertools.count(first):
        epoch = order.epoch(step)
        yield [(epoch, index) for index in order.rows(step).tolist()]

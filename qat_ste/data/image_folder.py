"""A data set of image files in folders, read anew for every batch or once into a cache."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch

from qat_ste.base.errors import Bounds
from qat_ste.data.crops import CentreCrops, Images, RandomCrops, training_keys
from qat_ste.data.dataset import Batch, Shard
from qat_ste.data.decoded_images import DecodedImages, bytes_needed, cache_folder, check_room, make_cache
from qat_ste.data.image_batches import BatchLoader, Normalise, deliver
from qat_ste.data.image_files import BrokenImageError, ImageFiles, find_images
from qat_ste.data.in_memory import EpochOrder

log = logging.getLogger(__name__)

TEST_BATCH = 128
SIZES, WORKERS = Bounds(1, 2048), Bounds(0, 256)
MOST_WORKERS = 8


class ImageFolderDataset:
    """Images in ``root/train/<class>`` and ``root/val/<class>``.

    Training images are cropped at random, resized to ``image_size`` and flipped half of the time; test images are
    resized to ``resize`` on the shorter side and cropped in the centre.

    Args:
        root: folder that holds ``train`` and ``val``.
        image_size: height and width of what a model gets.
        resize: shorter side of a test image before it is cropped, and of the images in the cache.
        mean, std: of each channel, of pixels in [0, 1].
        workers: processes that decode; 0: none beside this one; None: one a core, at most 8.
        on_error: "stop" at a broken image, or "skip" it: in training the next one stands in.
        cache: folder for decoded images; training crops then are taken from images of shorter side ``resize``.

    Raises:
        FileNotFoundError: folders or images are missing.
        ValueError: an argument is out of bounds, the splits' classes differ, the first image of a split is broken,
            or the cache has no room.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        resize: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        workers: int | None = None,
        on_error: str = "stop",
        cache: str | Path | None = None,
    ) -> None:
        if image_size not in SIZES:
            raise ValueError(f"image_size must be {SIZES}, got {image_size}")
        if resize < image_size:
            raise ValueError(f"resize must be at least image_size, {image_size}, got {resize}")
        if workers is not None and workers not in WORKERS:
            raise ValueError(f"workers must be {WORKERS}, or null for one a core, got {workers}")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be one of stop, skip, got {on_error}")
        self.train, self.val = find_images(Path(root))
        self.num_classes = len(self.train.classes)
        self.image_shape = (3, image_size, image_size)
        self.resize, self.mean, self.std = resize, mean, std
        self.workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS) if workers is None else workers
        self.skip = on_error == "skip"
        self.cache = None if cache is None else Path(cache)
        self._skipped: set[str] = set()
        self._test_loaders: dict[Shard, BatchLoader] = {}
        if not self.skip:
            for files in (self.train, self.val):
                files.read(0)
        if self.cache is not None:
            missing = [files for files in (self.train, self.val) if not self._cache_folder(files).exists()]
            check_room(self.cache, sum(bytes_needed(files, resize) for files in missing))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.train.fingerprint} {self.val.fingerprint}".encode()).hexdigest()[:16]

    @property
    def skipped(self) -> list[str]:
        return sorted(self._skipped)

    def prepare(self) -> None:
        """Makes the cache, if there is to be one.

        Raises:
            BrokenImageError: an image is broken and broken ones are not skipped.
        """
        if self.cache is not None:
            for files in (self.train, self.val):
                make_cache(
                    self._cache_folder(files), files, self.resize, self.workers, self._note if self.skip else None
                )

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> RandomCropBatches:
        order = EpochOrder(len(self.train), batch_size, shuffle, seed, shard)

        def starting_at(step: int) -> Iterator[Batch]:  # not before: the cache may have to be made first
            crops = RandomCrops(self._train_images, self.image_shape[1], seed, self.skip)
            loader = BatchLoader(crops, training_keys(order, step), batch_size // shard.ranks, self.workers)
            return self._deliver(loader, device)

        return RandomCropBatches(order.steps_per_epoch, starting_at)

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> CentreCropBatches:
        if shard not in self._test_loaders:
            crops = CentreCrops(self._val_images, self.image_shape[1], self.resize, self.skip)
            firsts = range(shard.rank * TEST_BATCH, len(self.val), shard.ranks * TEST_BATCH)
            batches = [range(first, min(first + TEST_BATCH, len(self.val))) for first in firsts]
            self._test_loaders[shard] = BatchLoader(crops, batches, TEST_BATCH, self.workers)
        loader = self._test_loaders[shard]
        loader.start()
        return CentreCropBatches(lambda: self._deliver(loader, device))

    @cached_property
    def _train_images(self) -> Images:
        return self._images(self.train)

    @cached_property
    def _val_images(self) -> Images:
        return self._images(self.val)

    def _images(self, files: ImageFiles) -> Images:
        return files if self.cache is None else DecodedImages(self._cache_folder(files), files)

    def _cache_folder(self, files: ImageFiles) -> Path:
        assert self.cache is not None
        return cache_folder(self.cache, files, self.resize)

    def _deliver(self, loader: BatchLoader, device: torch.device) -> Iterator[Batch]:
        return deliver(loader, Normalise(self.mean, self.std, self.image_shape[2], device), device, self._note)

    def _note(self, error: BrokenImageError) -> None:
        if error.path not in self._skipped:
            self._skipped.add(error.path)
            log.warning("skipped %s (%s)", error.path, error.reason)


class RandomCropBatches:
    """Endless training batches; each iterator has workers of its own, which end with it."""

    def __init__(self, steps_per_epoch: int, start: Callable[[int], Iterator[Batch]]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._start = start

    def starting_at(self, step: int) -> Iterator[Batch]:
        return self._start(step)


class CentreCropBatches:
    """The test images once, in order; its workers stay for the next time."""

    def __init__(self, start: Callable[[], Iterator[Batch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Batch]:
        return self._start()

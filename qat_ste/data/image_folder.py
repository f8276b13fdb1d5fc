"""A data set of image files in folders, decoded for every batch or cached once."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError, Number, OneOf, OrNone, require
from qat_ste.base.files import home_path
from qat_ste.data.crops import CentreCrops, ImageSource, ImageSubset, RandomCrops, training_keys
from qat_ste.data.dataset import Batch, Shard, split_fingerprint, split_rows
from qat_ste.data.decoded_images import DecodedImages, bytes_needed, cache_folder, check_free_space, make_cache
from qat_ste.data.image_batches import BatchLoader, Normalise, deliver
from qat_ste.data.image_files import BrokenImageError, ImageFiles, find_images
from qat_ste.data.in_memory import EpochOrder

log = logging.getLogger(__name__)

TEST_BATCH = 128
SIZES, WORKERS, ON_ERROR = Number(1, 2048), OrNone(Number(0, 256)), OneOf(("stop", "skip"))
MAX_DEFAULT_WORKERS = 8


class ImageFolderDataset:
    """Images in ``root/train/<class>`` and ``root/val/<class>``.

    Training images get a random crop, resized to ``image_size``, and a random horizontal flip; test images are
    resized to ``resize`` on the shorter side and cropped at the centre.

    Args:
        root: folder with ``train`` and ``val``.
        image_size: height and width of the model's input.
        resize: shorter side of test images before the crop, and of cached images; at least ``image_size``.
        mean, std: per channel, of pixels in [0, 1].
        workers: number of decoding processes; 0: decode in this process; None: one per core, at most 8.
        on_error: "stop" at a broken image, or "skip" it; in training, the next image replaces it.
        cache: folder for decoded images; training crops are then cut from images of shorter side ``resize``.

    Raises:
        FileNotFoundError: folders or images are missing.
        ArgumentError: an argument has a value that is not allowed.
        ValueError: the splits' classes differ, the first image of a split is broken, or the disk is too full.
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
        require(SIZES, image_size=image_size)
        require(Number(image_size), resize=resize)
        require(WORKERS, workers=workers)
        require(ON_ERROR, on_error=on_error)
        self.train, self.val = find_images(home_path(root))
        self.num_classes = len(self.train.classes)
        self.image_shape = (3, image_size, image_size)
        self.resize, self.mean, self.std = resize, mean, std
        self.workers = min(len(os.sched_getaffinity(0)), MAX_DEFAULT_WORKERS) if workers is None else workers
        self.skip = on_error == "skip"
        self.cache = None if cache is None else home_path(cache)
        self._skipped: set[str] = set()
        self._loaders: dict[tuple[str, Shard], BatchLoader] = {}  # of centre crops
        self._validation_seed: int | None = None
        if not self.skip:
            for files in (self.train, self.val):
                files.read(0)
        if self.cache is not None:
            uncached = [files for files in (self.train, self.val) if not self._cache_folder(files).exists()]
            check_free_space(self.cache, sum(bytes_needed(files, resize) for files in uncached))

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.train.fingerprint} {self.val.fingerprint}".encode()).hexdigest()[:16]
        return split_fingerprint(digest, self._validation_seed)

    @property
    def skipped(self) -> list[str]:
        return sorted(self._skipped)

    def prepare(self) -> None:
        """Makes the cache, if one is used.

        Raises:
            BrokenImageError: an image is broken, and ``on_error`` is "stop".
        """
        if self.cache is not None:
            for files in (self.train, self.val):
                on_broken = self._note_skipped if self.skip else None
                make_cache(self._cache_folder(files), files, self.resize, self.workers, on_broken)

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> RandomCropBatches:
        rows = None if self._validation_seed is None else self._split_rows()[0]
        order = EpochOrder(len(self.train) if rows is None else len(rows), batch_size, shuffle, seed, shard)

        def starting_at(step: int) -> Iterator[Batch]:  # reads nothing earlier: the cache may not exist yet
            images = self._train_images if rows is None else ImageSubset(self._train_images, rows)
            crops = RandomCrops(images, self.image_shape[1], seed, self.skip)
            loader = BatchLoader(crops, training_keys(order, step), batch_size // shard.ranks, self.workers)
            return self._deliver(loader, device)

        return RandomCropBatches(order.steps_per_epoch, starting_at)

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> CentreCropBatches:
        return self._centre_crops("test", self._val_images, device, shard)

    def with_validation(self, seed: int) -> ImageFolderDataset:
        """A copy that trains without a tenth of the images of each class, at least one; see ``Dataset``.

        The copy reads the same files and the same cache.

        Raises:
            ArgumentError: the seed is not allowed, or no class has two training images.
        """
        dataset = copy.copy(self)
        dataset._validation_seed, dataset._skipped, dataset._loaders = seed, set(self._skipped), {}
        if not len(dataset._split_rows()[1]):
            raise ArgumentError("root", str(self.train.folder.parent), "a folder with two training images of a class")
        return dataset

    def validation_batches(self, device: torch.device, shard: Shard = Shard()) -> CentreCropBatches:
        rows = self._split_rows()[1]  # first, since it refuses a data set without a split
        images = ImageSubset(self._train_images, rows)
        return self._centre_crops("validation", images, device, shard)

    def _split_rows(self) -> tuple[Tensor, Tensor]:
        sizes = self.train.labels.bincount().tolist()  # labels are sorted
        return split_rows([(size, max((size + 5) // 10, int(size > 1))) for size in sizes], self._validation_seed)

    def _centre_crops(self, name: str, images: ImageSource, device: torch.device, shard: Shard) -> CentreCropBatches:
        if (name, shard) not in self._loaders:
            crops = CentreCrops(images, self.image_shape[1], self.resize, self.skip)
            firsts = range(shard.rank * TEST_BATCH, len(images), shard.ranks * TEST_BATCH)
            batches = [range(first, min(first + TEST_BATCH, len(images))) for first in firsts]
            self._loaders[name, shard] = BatchLoader(crops, batches, TEST_BATCH, self.workers)
        loader = self._loaders[name, shard]
        loader.start()
        return CentreCropBatches(lambda: self._deliver(loader, device))

    @cached_property
    def _train_images(self) -> ImageSource:
        return self._source(self.train)

    @cached_property
    def _val_images(self) -> ImageSource:
        return self._source(self.val)

    def _source(self, files: ImageFiles) -> ImageSource:
        return files if self.cache is None else DecodedImages(self._cache_folder(files), files)

    def _cache_folder(self, files: ImageFiles) -> Path:
        assert self.cache is not None
        return cache_folder(self.cache, files, self.resize)

    def _deliver(self, loader: BatchLoader, device: torch.device) -> Iterator[Batch]:
        return deliver(loader, Normalise(self.mean, self.std, self.image_shape[2], device), device, self._note_skipped)

    def _note_skipped(self, error: BrokenImageError) -> None:
        if error.path not in self._skipped:
            self._skipped.add(error.path)
            log.warning("skipped %s (%s)", error.path, error.reason)


class RandomCropBatches:
    """Endless training batches; each iterator starts its own workers, which end with it."""

    def __init__(self, steps_per_epoch: int, start: Callable[[int], Iterator[Batch]]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self._start = start

    def starting_at(self, step: int) -> Iterator[Batch]:
        return self._start(step)


class CentreCropBatches:
    """All test images once, in order; the workers are reused by later iterations."""

    def __init__(self, start: Callable[[], Iterator[Batch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Batch]:
        return self._start()

"""A cache of decoded images: one memory-mapped file of pixels and an index.

The cache of a split is a folder, named after split, size and file list, with

- ``pixels``: uint8, the images one after the other, height x width x channels;
- ``index``: one ``RECORD`` per image, in the order of the file list; unreadable images have size 0.

The folder is called ``….part`` until it is complete. Pixels are written before their records, so that an interrupted
cache can be continued after the last complete record.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from qat_ste.base.files import lock
from qat_ste.data.image_files import BrokenImageError, ImageFiles
from qat_ste.data.workers import shared_memory, start_workers

log = logging.getLogger(__name__)

RECORD = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc32", "<u4"), ("encoded_bytes", "<u8")])
CHUNK = 16  # images that a worker sends at once
PROGRESS_SECONDS = 10


class DecodedImages:
    """Reads the cached images of a split.

    Raises:
        FileNotFoundError: the cache does not exist.
        ValueError: the cache is damaged, or was made from other versions of the files.
    """

    def __init__(self, folder: Path, files: ImageFiles) -> None:
        self.folder, self.files, self.labels = folder, files, files.labels
        try:
            self._index = np.fromfile(folder / "index", RECORD)
            size = (folder / "pixels").stat().st_size
        except OSError as error:
            if folder.exists():
                raise self._damaged(error.strerror or str(error)) from None
            raise
        if len(self._index) != len(files) or not _is_consistent(self._index, size):
            raise self._damaged("its files are inconsistent")
        for index in range(0, len(files), -(-len(files) // 1000)):  # checking all of a million files would take minutes
            if Path(files.path(index)).stat().st_size != self._index["encoded_bytes"][index]:
                raise ValueError(f"{folder} was made from another version of {files.path(index)}: delete that folder")
        with warnings.catch_warnings(action="ignore"):  # torch warns that the array is read-only
            self._pixels = torch.from_numpy(np.memmap(folder / "pixels", np.uint8, "r")) if size else torch.empty(0)
        self._verified = shared_memory(len(files))  # shared, so that only one worker verifies each image

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """Returns an image: RGB, uint8, 3 x height x width. The first read verifies its checksum.

        Raises:
            BrokenImageError: the image was unreadable when the cache was made.
            ValueError: the cache is damaged.
        """
        offset, height, width, checksum, _ = self._index[index].tolist()
        if height == 0:
            raise BrokenImageError(self.files.path(index), f"as noted in {self.folder}: delete that after a repair")
        pixels = self._pixels[offset : offset + 3 * height * width]
        if not self._verified[index]:
            if zlib.crc32(pixels.numpy().data) != checksum:
                raise self._damaged(f"the checksum of image {index} is wrong")
            self._verified[index] = 1
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(f"{self.folder / 'pixels'} is damaged ({reason}): delete {self.folder}")


def cache_folder(cache: Path, files: ImageFiles, resize: int) -> Path:
    """Folder of the cache for this size and list of files."""
    return cache / f"{files.folder.name}-{resize}-{files.fingerprint}"


def bytes_needed(files: ImageFiles, resize: int) -> int:
    """Estimates the size of the cache from at most 32 images."""
    sizes = []
    for index in range(0, len(files), -(-len(files) // 32)):
        try:
            sizes.append(_downscale(files.read(index), resize).nbytes)
        except BrokenImageError:
            sizes.append(0)
    return len(files) * sum(sizes) // len(sizes)


def make_cache(
    folder: Path, files: ImageFiles, resize: int, workers: int, on_broken: Callable[[BrokenImageError], None] | None
) -> None:
    """Writes the cache, or completes an interrupted one; if several processes call this, one writes and the rest wait.

    Args:
        resize: length that the shorter side is reduced to; smaller images keep their size.
        on_broken: called with the error of each broken image, which is stored as empty; None raises the error.

    Raises:
        BrokenImageError: an image cannot be read, and ``on_broken`` is None.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a+b", buffering=0) as lock_file:
        lock(lock_file, lambda holder: log.info("waiting for %s, which is making %s", holder, folder))
        if folder.exists():
            return
        partial = folder.with_name(f"{folder.name}.part")
        partial.mkdir(exist_ok=True)
        with (partial / "pixels").open("ab") as pixels, (partial / "index").open("ab") as index:
            done, offset = _truncate_to_complete_records(partial)
            chunks = [range(first, min(first + CHUNK, len(files))) for first in range(done, len(files), CHUNK)]
            last_report = time.monotonic()
            for chunk, resized in zip(chunks, start_workers(_Resizer(files, resize), chunks, workers), strict=True):
                records = []
                for image, (height, width, crc32), error in zip(chunk, resized.contents, resized.errors, strict=True):
                    if error is not None:
                        if on_broken is None:
                            raise error
                        on_broken(error)
                    records.append((offset, height, width, crc32, Path(files.path(image)).stat().st_size))
                    offset += 3 * height * width
                for file, content in ((pixels, resized.pixels.numpy()), (index, np.array(records, RECORD))):
                    file.write(content.tobytes())
                    file.flush()
                if time.monotonic() - last_report > PROGRESS_SECONDS:
                    last_report = time.monotonic()
                    log.info("%s: %d of %d images", folder, chunk.stop, len(files))
            for file in (pixels, index):
                os.fsync(file.fileno())
        partial.rename(folder)


def _truncate_to_complete_records(partial: Path) -> tuple[int, int]:
    """Removes images that were written incompletely; returns how many images, and bytes of pixels, remain."""
    index = np.fromfile(partial / "index", RECORD)
    starts, ends = _extents(index)
    complete = (index["offset"] == starts) & (ends <= (partial / "pixels").stat().st_size)
    done = len(index) if complete.all() else int(complete.argmin())
    offset = int(ends[done - 1]) if done else 0
    os.truncate(partial / "pixels", offset)
    os.truncate(partial / "index", done * RECORD.itemsize)
    return done, offset


def _is_consistent(index: np.ndarray, size: int) -> bool:
    """Whether the images fill a pixel file of ``size`` bytes without gaps, each with two sides > 0 or none."""
    height, width = index["height"].astype(np.uint64), index["width"].astype(np.uint64)
    if (height * width > size // 3).any() or ((height == 0) != (width == 0)).any():  # sums would hide these
        return False
    starts, ends = _extents(index)
    return bool((index["offset"] == starts).all() and size == ends[-1])


def _extents(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Byte offsets where the pixels of each image start and end."""
    sizes = 3 * index["height"].astype(np.uint64) * index["width"]
    ends = np.cumsum(sizes, dtype=np.uint64)
    return ends - sizes, ends


class _ResizedChunk(NamedTuple):
    """Images that a worker read and resized; an image with an error is empty."""

    pixels: Tensor
    contents: list[tuple[int, int, int]]  # height, width, checksum
    errors: list[BrokenImageError | None]


class _Resizer(Dataset):
    """Reads chunks of images and reduces their shorter side to ``resize``; runs in a worker."""

    def __init__(self, files: ImageFiles, resize: int) -> None:
        self.files, self.resize = files, resize

    def __getitems__(self, indices: range) -> _ResizedChunk:
        images: list[Tensor] = []
        errors: list[BrokenImageError | None] = []
        for index in indices:
            try:
                images.append(_downscale(self.files.read(index), self.resize).permute(1, 2, 0).contiguous())
                errors.append(None)
            except BrokenImageError as error:
                images.append(torch.empty(0, 0, 3, dtype=torch.uint8))
                errors.append(error)
        contents = [(image.shape[0], image.shape[1], zlib.crc32(image.numpy().data)) for image in images]
        return _ResizedChunk(torch.cat([image.flatten() for image in images]), contents, errors)


def _downscale(image: Tensor, resize: int) -> Tensor:
    return functional.resize(image, [resize], antialias=True) if min(image.shape[1:]) > resize else image


def check_free_space(cache: Path, needed: int) -> None:
    """Raises ValueError if fewer than ``needed`` bytes are free on the disk of ``cache``, which may not exist yet."""
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(f"cache needs about {needed:,} bytes, but only {free:,} are free at {existing}")

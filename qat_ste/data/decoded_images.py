"""A cache of decoded images: one flat file of pixels that is mapped into memory, and an index.

A split's cache is a folder whose name tells split, size and file list, with

- ``pixels``: uint8, the images one after the other, height x width x channels;
- ``index``: a ``RECORD`` an image, in the order of the file list; an empty image is one that could not be read.

While it is made the folder is called ``….part``; the index then is the journal: pixels first, then their records.
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
CHUNK = 16  # images that go from a worker to main at once
PROGRESS_SECONDS = 10


class DecodedImages:
    """The cached images of a split.

    Raises:
        FileNotFoundError: the cache has not been made.
        ValueError: it is damaged, or was made from other files of the same names.
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
        if len(self._index) != len(files) or not _fits(self._index, size):
            raise self._damaged("its files do not fit together")
        for index in range(0, len(files), -(-len(files) // 1000)):  # a stat for each of a million files takes minutes
            if Path(files.path(index)).stat().st_size != self._index["encoded_bytes"][index]:
                raise ValueError(f"{folder} was made when {files.path(index)} was another file: delete that folder")
        with warnings.catch_warnings(action="ignore"):  # torch has no read-only tensors, and this one is
            self._pixels = torch.from_numpy(np.memmap(folder / "pixels", np.uint8, "r")) if size else torch.empty(0)
        # shared, so that of several workers one verifies an image
        self._verified = shared_memory(len(files))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Tensor:
        """RGB, uint8, 3 x height x width; its checksum is verified when it is read for the first time.

        Raises:
            BrokenImageError: it could not be read when the cache was made.
            ValueError: the cache is damaged.
        """
        offset, height, width, checksum, _ = self._index[index].tolist()
        if height == 0:
            raise BrokenImageError(self.files.path(index), f"found when {self.folder} was made; delete that if mended")
        pixels = self._pixels[offset : offset + 3 * height * width]
        if not self._verified[index]:
            if zlib.crc32(pixels.numpy().data) != checksum:
                raise self._damaged(f"the checksum of image {index} is wrong")
            self._verified[index] = 1
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def _damaged(self, how: str) -> ValueError:
        return ValueError(f"{self.folder / 'pixels'} is damaged ({how}): delete {self.folder}")


def cache_folder(cache: Path, files: ImageFiles, resize: int) -> Path:
    """Another size or another list of files has another folder."""
    return cache / f"{files.folder.name}-{resize}-{files.fingerprint}"


def bytes_needed(files: ImageFiles, resize: int) -> int:
    """An estimate of the cache's size from a few dozen images."""
    sizes = []
    for index in range(0, len(files), -(-len(files) // 32)):
        try:
            sizes.append(_shrink(files.read(index), resize).nbytes)
        except BrokenImageError:
            sizes.append(0)
    return len(files) * sum(sizes) // len(sizes)


def make_cache(
    folder: Path, files: ImageFiles, resize: int, workers: int, skip: Callable[[BrokenImageError], None] | None
) -> None:
    """Writes the cache, or the rest of it if that was interrupted; of several processes one does, the others wait.

    Args:
        resize: the shorter side is reduced to this; smaller images are kept as they are.
        skip: is told of a broken image, which is left empty; None: it is raised.

    Raises:
        BrokenImageError: an image cannot be read.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a+b", buffering=0) as lock_file:
        lock(lock_file, lambda holder: log.info("%s is making %s: waiting for it", holder, folder))
        if folder.exists():
            return
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(exist_ok=True)
        with (part / "pixels").open("ab") as pixels, (part / "index").open("ab") as index:
            done, offset = _cut_to_whole_records(part)
            chunks = [range(first, min(first + CHUNK, len(files))) for first in range(done, len(files), CHUNK)]
            told = time.monotonic()
            for chunk, shrunk in zip(chunks, start_workers(_Shrunk(files, resize), chunks, workers), strict=True):
                records = []
                for image, (height, width, checksum), error in zip(chunk, shrunk.contents, shrunk.errors, strict=True):
                    if error is not None:
                        if skip is None:
                            raise error
                        skip(error)
                    records.append((offset, height, width, checksum, Path(files.path(image)).stat().st_size))
                    offset += 3 * height * width
                for file, content in ((pixels, shrunk.pixels.numpy()), (index, np.array(records, RECORD))):
                    file.write(content.tobytes())
                    file.flush()
                if time.monotonic() - told > PROGRESS_SECONDS:
                    told = time.monotonic()
                    log.info("%s: %d of %d images", folder, chunk.stop, len(files))
            for file in (pixels, index):
                os.fsync(file.fileno())
        part.rename(folder)


def _cut_to_whole_records(part: Path) -> tuple[int, int]:
    """Cuts off what was written last and not completely; returns how many images and bytes are left."""
    index = np.fromfile(part / "index", RECORD)
    starts, ends = _extents(index)
    whole = (index["offset"] == starts) & (ends <= (part / "pixels").stat().st_size)
    done = len(index) if whole.all() else int(whole.argmin())
    offset = int(ends[done - 1]) if done else 0
    os.truncate(part / "pixels", offset)
    os.truncate(part / "index", done * RECORD.itemsize)
    return done, offset


def _fits(index: np.ndarray, size: int) -> bool:
    """Whether these images are side by side in a file of pixels of this size, none of them with one side alone."""
    height, width = index["height"].astype(np.uint64), index["width"].astype(np.uint64)
    if (height * width > size // 3).any() or ((height == 0) != (width == 0)).any():  # which sums could hide
        return False
    starts, ends = _extents(index)
    return bool((index["offset"] == starts).all() and size == ends[-1])


def _extents(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each image's pixels start and end."""
    sizes = 3 * index["height"].astype(np.uint64) * index["width"]
    ends = np.cumsum(sizes, dtype=np.uint64)
    return ends - sizes, ends


class _Chunk(NamedTuple):
    """Images that a worker read: where there is an error, the image is empty."""

    pixels: Tensor
    contents: list[tuple[int, int, int]]  # height, width, checksum
    errors: list[BrokenImageError | None]


class _Shrunk(Dataset):
    """Images with the shorter side reduced to ``resize``, in chunks."""

    def __init__(self, files: ImageFiles, resize: int) -> None:
        self.files, self.resize = files, resize

    def __getitems__(self, indices: range) -> _Chunk:
        images: list[Tensor] = []
        errors: list[BrokenImageError | None] = []
        for index in indices:
            try:
                images.append(_shrink(self.files.read(index), self.resize).permute(1, 2, 0).contiguous())
                errors.append(None)
            except BrokenImageError as error:
                images.append(torch.empty(0, 0, 3, dtype=torch.uint8))
                errors.append(error)
        contents = [(image.shape[0], image.shape[1], zlib.crc32(image.numpy().data)) for image in images]
        return _Chunk(torch.cat([image.flatten() for image in images]), contents, errors)


def _shrink(image: Tensor, resize: int) -> Tensor:
    return functional.resize(image, [resize], antialias=True) if min(image.shape[1:]) > resize else image


def check_room(cache: Path, needed: int) -> None:
    """Raises ValueError if fewer than ``needed`` bytes are free at ``cache``, which need not exist yet."""
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(f"cache needs about {needed:,} bytes, but only {free:,} are free at {there}")

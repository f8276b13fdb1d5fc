"""Batches of images, decoded and cropped by worker processes, normalised on the device that wants them."""

from __future__ import annotations

import gc
import hashlib
import itertools
import math
import mmap
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from qat_ste.data.dataset import Batch
from qat_ste.data.image_files import BrokenImageError
from qat_ste.data.in_memory import EpochOrder

FETCHED_AHEAD = 2  # batches a worker
SERIAL = 32767  # values of which torch makes one thread's work


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


class BatchLoader:
    """Crops for each of ``batches`` of at most ``batch_size`` keys, by worker processes that live as long as this.

    It is iterated over once at a time.

    Pixels come through a ring of buffers: to ask for new shared memory each time costs as much as to crop and resize,
    and containers are often short of it. What is yielded is valid until the next is asked for.
    """

    def __init__(
        self, crops: RandomCrops | CentreCrops, batches: Iterable[Sequence], batch_size: int, workers: int
    ) -> None:
        slots = FETCHED_AHEAD * workers + 1  # those under way and the one in use
        self._ring = shared_memory(slots, batch_size, crops.size, crops.size, 3)
        self._loader = start_workers(_Filler(crops, self._ring), _Tasks(batches, slots), workers)
        self._forked = workers == 0
        # In a cycle of garbage (somebody kept an error, say) the pipes to the workers may be closed before these are
        # told to end; what a finalizer holds is in no such cycle.
        weakref.finalize(self, _as_it_is, self._loader).atexit = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]]:
        """Pixels (uint8, N x height x width x channels), labels, and what was left out; workers start at once.

        Raises:
            ValueError: when a batch is asked for: an image is broken and broken ones are not skipped, or the cache is
                damaged.
        """
        if not self._forked:
            gc.collect()  # a loader that is garbage by now would be collected in a worker and end other workers
            self._forked = True
        return self._unpacked(iter(self._loader))

    def start(self) -> None:
        """Starts the workers before they are needed, while there is little memory to share with them."""
        if not self._forked:
            iter(self)

    def _unpacked(self, tasks: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]]:
        for filled in tasks:
            if isinstance(filled, ValueError):
                raise filled
            slot, labels, broken = filled
            yield self._ring[slot, : len(labels)], torch.tensor(labels), broken


class _Tasks:
    """Batches of keys, each with the slot of the ring it goes to."""

    def __init__(self, batches: Iterable[Sequence], slots: int) -> None:
        self.batches, self.slots = batches, slots

    def __iter__(self) -> Iterator[tuple[int, Sequence]]:
        return zip(itertools.cycle(range(self.slots)), self.batches, strict=False)


class _Filler(Dataset):
    """Writes a batch into its slot, in a worker."""

    def __init__(self, crops: RandomCrops | CentreCrops, ring: Tensor) -> None:
        self.crops, self.ring = crops, ring

    def __getitems__(self, task: tuple[int, Any]) -> tuple[int, list[int], list[BrokenImageError]] | ValueError:
        slot, keys = task
        try:
            images, labels, broken = self.crops(keys)
        except ValueError as error:  # as data: raised here, it would reach the user inside a worker's traceback
            return error
        if images:
            torch.stack(images, out=self.ring[slot, : len(images)])
        return slot, labels, broken


def start_workers(dataset: Dataset, batches: Iterable, workers: int) -> DataLoader:
    """A loader of ``dataset.__getitems__`` for each of ``batches``."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable will do
        num_workers=workers,
        prefetch_factor=FETCHED_AHEAD if workers else None,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_main,
        # fork: file list and ring are shared, and a script need not be importable; workers start no OpenMP threads
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # else a number would be drawn from the caller's
    )


def _as_it_is(values: Any) -> Any:
    return values


def _leave_signals_to_main(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to the process group; main ends its workers itself, once it has saved."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shared_memory(*shape: int) -> Tensor:
    """uint8 zeros that forked processes share."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)


class Normalise:
    """(pixel/255 - mean)/std: uint8 N x height x width x channels to float32 N x channels x height x width."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> None:
        # A whole row of factors each: broadcasting over three channels is slow.
        self.factor = torch.tensor([1 / (255 * s) for s in std], device=device).repeat(width)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).repeat(width)
        self._spare: list[np.ndarray] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        rows = pixels.flatten(0, 1).flatten(1)
        if pixels.device.type == "cpu":
            images = self._memory(rows.numel()).view(rows.shape)
            # Few rows at once, lest torch start threads that wait for cores on which workers decode.
            at_once = max(1, SERIAL // rows.shape[1])
            for source, target in zip(rows.split(at_once), images.split(at_once), strict=True):
                torch.mul(source, self.factor, out=target).add_(self.shift)
        else:
            images = torch.mul(rows, self.factor).add_(self.shift)
        return images.view(pixels.shape).permute(0, 3, 1, 2)

    def _memory(self, size: int) -> Tensor:
        """Memory of a batch that nobody holds any more, else new: the system takes longer to give than we to fill."""
        fitting = [number for number, memory in enumerate(self._spare) if len(memory) == size]
        memory = self._spare.pop(fitting[0]) if fitting else np.empty(size, np.float32)
        lent = memory[:]  # lives as long as the tensor's storage
        weakref.finalize(lent, self._spare.append, memory).atexit = False
        return torch.from_numpy(lent)


def deliver(
    loader: BatchLoader, normalise: Normalise, device: torch.device, note: Callable[[BrokenImageError], None]
) -> Iterator[Batch]:
    """Batches on the device, where normalise is; ``note`` is told what was left out.

    Raises:
        ValueError: as ``BatchLoader``.
    """
    batches = _told(iter(loader), note)
    return _ahead(batches, normalise, device) if device.type == "cuda" else _at_once(batches, normalise)


def _at_once(batches: Iterator[Batch], normalise: Normalise) -> Iterator[Batch]:
    for pixels, labels in batches:
        yield normalise(pixels), labels


def _ahead(batches: Iterator[Batch], normalise: Normalise, device: torch.device) -> Iterator[Batch]:
    """Copies the next batch on a stream of its own while the caller works on this one."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # on which normalise was made
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for pixels, labels in batches:
        with torch.cuda.stream(stream):
            images = normalise(pixels.pin_memory().to(device, non_blocking=True))
            batch = images, labels.pin_memory().to(device, non_blocking=True)
        ready = stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = batch, ready
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, ready: torch.cuda.Event) -> Batch:
    stream = torch.cuda.current_stream(batch[0].device)
    stream.wait_event(ready)
    for values in batch:
        values.record_stream(stream)  # its memory is not given to the next copy while the caller's work is queued
    return batch


def _told(
    batches: Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]], note: Callable[[BrokenImageError], None]
) -> Iterator[Batch]:
    for pixels, labels, broken in batches:
        for error in broken:
            note(error)
        if len(labels):
            yield pixels, labels

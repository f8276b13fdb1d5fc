"""Batches of images, decoded and cropped by worker processes, normalised on the device that wants them."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qat_ste.data.crops import CentreCrops, RandomCrops
from qat_ste.data.dataset import Batch
from qat_ste.data.image_files import BrokenImageError
from qat_ste.data.workers import FETCHED_AHEAD, as_it_is, shared_memory, start_workers

SERIAL = 32767  # values of which torch makes one thread's work


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
        weakref.finalize(self, as_it_is, self._loader).atexit = False

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

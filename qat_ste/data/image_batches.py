"""Batches of images: decoded and cropped by worker processes, normalized on the target device."""

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
from qat_ste.data.dataset import Batch, to_device
from qat_ste.data.image_files import BrokenImageError
from qat_ste.data.workers import PREFETCH_FACTOR, identity, shared_memory, start_workers

SERIAL = 32767  # torch uses one thread for at most this many values


class BatchLoader:
    """Crops ``batches`` of at most ``batch_size`` keys in worker processes that live as long as the loader.

    Supports one iterator at a time. Pixels pass through a ring of shared buffers, since allocating shared memory for
    each batch takes as long as cropping, and containers often have little of it. A yielded batch is valid until the
    next one is requested.
    """

    def __init__(
        self, crops: RandomCrops | CentreCrops, batches: Iterable[Sequence], batch_size: int, workers: int
    ) -> None:
        slots = PREFETCH_FACTOR * workers + 1  # prefetched batches and the one in use
        self._ring = shared_memory(slots, batch_size, crops.size, crops.size, 3)
        self._loader = start_workers(_RingWriter(crops, self._ring), _SlotBatches(batches, slots), workers)
        self._started = workers == 0
        # If a reference cycle (a stored exception, for example) held the DataLoader, garbage collection could close the
        # pipes before it stops the workers. The finalizer keeps the DataLoader out of such cycles.
        weakref.finalize(self, identity, self._loader).atexit = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]]:
        """Yields pixels (uint8, N x height x width x channels), labels, and errors of skipped images.

        Workers start at this call. The iterator raises BrokenImageError for a broken image that is not to be skipped,
        and ValueError if the cache is damaged.
        """
        if not self._started:
            gc.collect()  # otherwise a worker could collect an unreachable loader, and end that loader's workers
            self._started = True
        return self._read_ring(iter(self._loader))

    def start(self) -> None:
        """Starts the workers early, while this process is small to fork."""
        if not self._started:
            iter(self)

    def _read_ring(self, results: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]]:
        for result in results:
            if isinstance(result, ValueError):
                raise result
            slot, labels, broken = result
            yield self._ring[slot, : len(labels)], torch.tensor(labels), broken


class _SlotBatches:
    """Batches of keys, each with its slot in the ring."""

    def __init__(self, batches: Iterable[Sequence], slots: int) -> None:
        self.batches, self.slots = batches, slots

    def __iter__(self) -> Iterator[tuple[int, Sequence]]:
        return zip(itertools.cycle(range(self.slots)), self.batches, strict=False)


class _RingWriter(Dataset):
    """Writes each batch into its slot of the ring; runs in a worker."""

    def __init__(self, crops: RandomCrops | CentreCrops, ring: Tensor) -> None:
        self.crops, self.ring = crops, ring

    def __getitems__(self, batch: tuple[int, Any]) -> tuple[int, list[int], list[BrokenImageError]] | ValueError:
        slot, keys = batch
        try:
            images, labels, broken = self.crops(keys)
        except ValueError as error:  # returned: if raised here, its message would hold the worker's traceback
            return error
        if images:
            torch.stack(images, out=self.ring[slot, : len(images)])
        return slot, labels, broken


class Normalise:
    """(pixel/255 - mean)/std: uint8 N x height x width x channels to float32 N x channels x height x width."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> None:
        # Repeated over a row of pixels, since broadcasting over three channels is slow.
        self.factor = torch.tensor([1 / (255 * s) for s in std], device=device).repeat(width)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).repeat(width)
        self._free_buffers: list[np.ndarray] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        rows = pixels.flatten(0, 1).flatten(1)
        if pixels.device.type == "cpu":
            images = self._buffer(rows.numel()).view(rows.shape)
            # Few rows per call: with more, torch would start threads, which compete with the workers for cores.
            block = max(1, SERIAL // rows.shape[1])
            for source, target in zip(rows.split(block), images.split(block), strict=True):
                torch.mul(source, self.factor, out=target).add_(self.shift)
        else:
            images = torch.mul(rows, self.factor).add_(self.shift)
        return images.view(pixels.shape).permute(0, 3, 1, 2)

    def _buffer(self, size: int) -> Tensor:
        """Reuses the memory of a batch that was freed: allocating new memory takes longer than filling it."""
        fitting = [index for index, buffer in enumerate(self._free_buffers) if len(buffer) == size]
        buffer = self._free_buffers.pop(fitting[0]) if fitting else np.empty(size, np.float32)
        view = buffer[:]  # lives as long as the tensor's storage
        weakref.finalize(view, self._free_buffers.append, buffer).atexit = False
        return torch.from_numpy(view)


def deliver(
    loader: BatchLoader, normalise: Normalise, device: torch.device, on_broken: Callable[[BrokenImageError], None]
) -> Iterator[Batch]:
    """Yields normalized batches on ``device``, which ``normalise`` must be on.

    ``on_broken`` is called with the error of each skipped image. Raises what iterating over ``loader`` raises.
    """
    batches = _report_broken(iter(loader), on_broken)
    return _deliver_cuda(batches, normalise, device) if device.type == "cuda" else _deliver_cpu(batches, normalise)


def _deliver_cpu(batches: Iterator[Batch], normalise: Normalise) -> Iterator[Batch]:
    for pixels, labels in batches:
        yield normalise(pixels), labels


def _deliver_cuda(batches: Iterator[Batch], normalise: Normalise, device: torch.device) -> Iterator[Batch]:
    """Copies the next batch on a separate stream while the caller uses the current one."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # that stream initialized normalise
    pending: tuple[Batch, torch.cuda.Event] | None = None
    for pixels, labels in batches:
        with torch.cuda.stream(stream):
            images = normalise(to_device(pixels, device))
            batch = images, to_device(labels, device)
        copied = stream.record_event()
        if pending is not None:
            yield _after_copy(*pending)
        pending = batch, copied
    if pending is not None:
        yield _after_copy(*pending)


def _after_copy(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Makes the caller's stream wait until the batch is copied."""
    stream = torch.cuda.current_stream(batch[0].device)
    stream.wait_event(copied)
    for values in batch:
        values.record_stream(stream)  # its memory is not reused while work of the caller's stream is queued
    return batch


def _report_broken(
    batches: Iterator[tuple[Tensor, Tensor, list[BrokenImageError]]], on_broken: Callable[[BrokenImageError], None]
) -> Iterator[Batch]:
    for pixels, labels, broken in batches:
        for error in broken:
            on_broken(error)
        if len(labels):
            yield pixels, labels

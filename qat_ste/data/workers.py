"""Worker processes that prefetch batches, and memory that they share."""

from __future__ import annotations

import math
import mmap
import os
import signal
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

PREFETCH_FACTOR = 2  # batches per worker


def start_workers(dataset: Dataset, batches: Iterable, workers: int) -> DataLoader:
    """Loads ``dataset.__getitems__(batch)`` for each of ``batches``, in ``workers`` processes (0: in this one)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable works
        num_workers=workers,
        prefetch_factor=PREFETCH_FACTOR if workers else None,
        persistent_workers=workers > 0,
        collate_fn=identity,
        worker_init_fn=_ignore_group_signals,
        # Forked workers share the file list and the ring, and scripts need no main guard; they start no OpenMP threads.
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # otherwise the DataLoader draws from the global generator
    )


def identity(values: Any) -> Any:
    """Returns its argument; a ``collate_fn``."""
    return values


def _ignore_group_signals(_: int) -> None:
    """Shields a worker from Ctrl-C and SIGTERM to the process group: the main process saves, then ends its workers."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shared_memory(*shape: int) -> Tensor:
    """Returns uint8 zeros that forked processes share."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)

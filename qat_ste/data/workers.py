"""Worker processes that read ahead, and memory that they share."""

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

FETCHED_AHEAD = 2  # batches a worker


def start_workers(dataset: Dataset, batches: Iterable, workers: int) -> DataLoader:
    """A loader of ``dataset.__getitems__`` for each of ``batches``."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable will do
        num_workers=workers,
        prefetch_factor=FETCHED_AHEAD if workers else None,
        persistent_workers=workers > 0,
        collate_fn=as_it_is,
        worker_init_fn=_leave_signals_to_main,
        # fork: file list and ring are shared, and a script need not be importable; workers start no OpenMP threads
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # else a number would be drawn from the caller's
    )


def as_it_is(values: Any) -> Any:
    """The identity, with a name that can be held."""
    return values


def _leave_signals_to_main(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM go to the process group; main ends its workers itself, once it has saved."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def shared_memory(*shape: int) -> Tensor:
    """uint8 zeros that forked processes share."""
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)

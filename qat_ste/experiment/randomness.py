"""Seeds the generators of torch, NumPy and Python, so that a step's randomness depends on seed and step alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# What is drawn: noise in the passes of a step, training batches, or evaluation. Each has generators of its own.
PASSES, BATCHES, EVALUATION = range(3)


def seed_noise(seed: int, step: int, device: torch.device, shard: int = 0, purpose: int = PASSES) -> None:
    """Seeds the global generators: what is drawn is the same for every member and differs by step and shard."""
    number = (seed * 1_000_003 + step + (shard << 40) + (purpose << 60)) % 2**63
    random.seed(number)
    np.random.seed(number % 2**32)
    # Not torch.manual_seed: before CUDA has started it stores a stack trace at each call, a millisecond each.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):  # manual_seed seeds the current one
            torch.cuda.manual_seed(number)


def seed_everything(seed: int) -> None:
    """Seeds all global generators, for building a model."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Context after which the caller's global generators are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices: list[Any] = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

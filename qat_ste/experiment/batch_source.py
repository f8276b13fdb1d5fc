"""Training batches and validation batches: read with seeded generators, checked, moved to the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import Any

import torch

from qat_ste.base.errors import STEPS, ArgumentError, require
from qat_ste.base.sections import Training
from qat_ste.data.dataset import Batch, TrainingBatches, to_device
from qat_ste.experiment.checks import inputs_and_targets
from qat_ste.experiment.randomness import BATCHES, EVALUATION, seed_noise

Batches = Iterable[Batch] | TrainingBatches


def steps_of(training: Training, batches: Batches) -> tuple[int, int | None]:
    """The steps of a training, and those of an epoch; None where the batches have no length, as a stream.

    Raises:
        ArgumentError: the length is in epochs, and nothing says how long one is; or there are too many steps.
    """
    steps_per_epoch = training.steps_per_epoch or _length(batches)
    if training.epochs is not None and steps_per_epoch is None:
        raise ArgumentError("steps_per_epoch", None, "given where epochs are, since the batches have no length")
    steps = training.total_steps(steps_per_epoch)
    require(STEPS, steps=steps)
    return steps, steps_per_epoch


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


class BatchSource:
    """Training batches from a step on, without end.

    The generators are seeded by (seed, step) before each batch is read, so that a loader that shuffles or transforms
    with the global generators gives the same batches after a resume.

    Args:
        step: of the first batch. A list or loader is read from its beginning.
    """

    def __init__(self, batches: Batches, step: int, seed: int) -> None:
        self._last: Batch | None = None
        self._repeats = isinstance(batches, Iterable)
        if isinstance(batches, Iterable):
            self._batches: Iterator[Batch] = islice(_repeat(batches, seed), max(step - 1, 0), None)
            if step:  # the digest of the last batch of the run so far
                self._last = next(self._batches)
        else:
            self._batches = batches.starting_at(step)
        self.read_digest = self.digest
        self._ahead: list[Batch] = []

    def first(self) -> Batch:
        """The next batch, which stays the next one."""
        if not self._ahead:
            self._ahead = list(islice(self, 1))
        if not self._ahead:
            raise ArgumentError("batches", "no batch", "batches that have inputs")
        return self._ahead[0]

    def __iter__(self) -> BatchSource:
        return self

    def __next__(self) -> Batch:
        if self._ahead:
            return self._ahead.pop()
        self._last = next(self._batches)
        return self._last

    @property
    def digest(self) -> str | None:
        """Identifies the last batch; None for ``TrainingBatches``, which depend on the step alone."""
        if self._last is None or not self._repeats:
            return None
        pair = inputs_and_targets("batches", self._last)
        bits = [values.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for values in pair]
        return sha256(b"".join(values.numpy().tobytes() for values in bits)).hexdigest()[:16]


def _repeat(batches: Iterable[Batch], seed: int) -> Iterator[Batch]:
    step = 0
    while True:
        first = step
        for batch in seeded(batches, seed, step, BATCHES):
            yield batch
            step += 1
        if step == first:
            raise ArgumentError("batches", batches, "a list or loader that can be iterated again")


def seeded(batches: Iterable[Batch], seed: int, step: int = 0, purpose: int = EVALUATION) -> Iterator[Batch]:
    """The batches, with the generators seeded by (seed, step) before each is read."""
    cpu = torch.device("cpu")
    seed_noise(seed, step, cpu, purpose=purpose)
    iterator = iter(batches)
    while True:
        seed_noise(seed, step, cpu, purpose=purpose)
        try:
            yield next(iterator)
        except StopIteration:
            return
        step += 1


def on_device(batches: Iterable[Batch], device: torch.device, argument: str) -> Iterator[Batch]:
    """Inputs and targets on the device.

    Raises:
        ArgumentError: a batch of this argument is no pair of tensors, or has no inputs.
    """
    for batch in batches:
        inputs, targets = inputs_and_targets(argument, batch)
        if not inputs.numel():
            raise ArgumentError(argument, tuple(inputs.shape), "batches that have inputs")
        yield to_device(inputs, device), to_device(targets, device)

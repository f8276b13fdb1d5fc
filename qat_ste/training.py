"""The lockstep loop: one batch, one step of every member, one look at how far they have parted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qat_ste.cohort import Cohort, Evaluation, L2Penalty, Loss, Member
from qat_ste.divergence import Divergence, Pair, Trajectory, Values, sample_positions
from qat_ste.schedules import Schedule

Batches = Iterable[tuple[Tensor, Tensor]]
Row = dict[str, Any]


class Stopped(Exception):
    """The run was asked to stop and did, after the step given."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Lockstep:
    """Steps of a whole cohort.

    Before each member's forward pass the generators are seeded by (seed, step): dropout draws the same noise for
    every member, whichever members there are and wherever a run was resumed.
    """

    def __init__(self, cohort: Cohort, loss: Loss, schedule: Schedule, l2: L2Penalty | None, seed: int) -> None:
        self.cohort, self.loss, self.schedule, self.l2, self.seed = cohort, loss, schedule, l2, seed
        self.members = cohort.members

    def step(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Optimizer step number ``step`` (0, 1, …) of every member; returns their losses."""
        factor, losses = self.schedule(step), []
        for member in self.members:
            self._seed(step)
            losses.append(member.step(inputs, targets, self.loss, factor, self.l2))
        return torch.stack(losses)

    def _seed(self, step: int) -> None:
        number = (self.seed * 1_000_003 + step) % 2**63
        # Not torch.manual_seed: before CUDA has started it stores a stack trace at each call, a millisecond each.
        torch.default_generator.manual_seed(number)
        if self.cohort.reference.weights.buffer.is_cuda:
            torch.cuda.manual_seed(number)


class DivergenceMonitor:
    """Trajectories of all members and the metrics of each counterpart."""

    def __init__(self, cohort: Cohort, sequence_weights: int, seed: int) -> None:
        weights = cohort.reference.weights
        self.parts = weights.parts
        self.sampled = sample_positions(self.parts, sequence_weights, seed)
        self.trajectories = {
            member: Trajectory(member.weights.buffer, member.weights.quantizer, self.sampled)
            for member in cohort.members
        }
        self.pairs = {
            member: Pair(self.trajectories[cohort.reference], self.trajectories[member], cohort.weight_map(member))
            for member in cohort.counterparts.values()
        }
        self.divergences = {member: Divergence(pair) for member, pair in self.pairs.items()}

    def observe(self, step: int) -> None:
        """Takes in the weights after optimizer step ``step`` (1, 2, …)."""
        for trajectory in self.trajectories.values():
            trajectory.observe(step)
        for divergence in self.divergences.values():
            divergence.update()


@dataclass
class Record:
    """What a training run leaves behind."""

    losses: Tensor  # members x steps
    initial: dict[Member, Values]
    evaluations: dict[Member, Evaluation] = field(default_factory=dict)
    validation: dict[Member, list[tuple[int, float, float | None]]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def train(
    lockstep: Lockstep,
    monitor: DivergenceMonitor,
    batches: Batches,
    steps: int,
    *,
    validation: Batches | None = None,
    steps_per_epoch: int | None = None,
    log_every: int | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Trains the cohort for ``steps`` steps.

    Args:
        validation: evaluated at the end of each epoch and of the run; iterated anew each time.
        steps_per_epoch: by default one pass over ``batches`` if they have a length, else the whole run.
        log_every: steps between rows; by default 200 rows a run.
        on_row: called with each row as it is made.
        stop: asked after each step.

    Raises:
        Stopped: ``stop`` said so.
        FloatingPointError: a loss is not finite; names step, member and tensor.
        ValueError: ``batches`` ended before ``steps`` and cannot be iterated again.
    """
    cohort, members = lockstep.cohort, lockstep.members
    device = cohort.reference.weights.buffer.device
    log_every = log_every or max(1, steps // 200)
    steps_per_epoch = steps_per_epoch or (len(batches) if isinstance(batches, Sized) else steps)
    record = Record(torch.zeros(len(members), steps, device=device), _initial(monitor))
    record.validation = {member: [] for member in members}

    def emit(row: Row) -> None:
        record.rows.append(row)
        on_row(row)

    logged = 0
    for step, (inputs, targets) in zip(range(steps), _repeat(batches), strict=False):
        losses = lockstep.step(step, inputs.to(device), targets.to(device))
        record.losses[:, step] = losses
        done = step + 1
        monitor.observe(done)
        if done % log_every == 0 or done == steps:
            recent = record.losses[:, logged:done]
            _check_finite(recent, members, cohort, logged)
            logged = done
            lr = cohort.reference.lrs[-1] * lockstep.schedule(step)
            row: Row = {"step": done, "epoch": done / steps_per_epoch, "lr": lr}
            train_loss = dict(zip(members, recent.mean(1).tolist(), strict=True))
            now = {member: divergence.now() for member, divergence in monitor.divergences.items()}
            for name, member in _named(cohort):
                row[f"{name}/train_loss"] = train_loss[member]
                row |= {f"{name}/{key}": value for key, value in now.get(member, {}).items()}
            emit(row)
        if validation is not None and (done % steps_per_epoch == 0 or done == steps):
            emit(_validate(lockstep, validation, done, done / steps_per_epoch, record, device))
        if stop() and done < steps:
            raise Stopped(done)
    return record


def _named(cohort: Cohort) -> Iterator[tuple[str, Member]]:
    yield "reference", cohort.reference
    yield from cohort.counterparts.items()


def _repeat(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches ended before the last step and cannot be iterated again: give a list or a loader")


def _initial(monitor: DivergenceMonitor) -> dict[Member, Values]:
    """Before any step: mean |R(w₀_ref) - w₀|/max, which has no path to be divided by yet, and the agreement."""
    initial: dict[Member, Values] = {}
    for member, pair in monitor.pairs.items():
        weights, quantizer = pair.counterpart.weights, pair.counterpart.quantizer
        error = ((pair.mapped_reference() - weights).abs().double() / quantizer.max).mean().item()
        agreement = (pair.reference.level == pair.counterpart.level).double().mean().item()
        initial[member] = {"initial_alignment_error": error, "initial_quantized_agreement": agreement}
    return initial


def _validate(
    lockstep: Lockstep, batches: Batches, step: int, epoch: float, record: Record, device: torch.device
) -> Row:
    row: Row = {"step": step, "epoch": epoch}
    for member in lockstep.members:
        on_device = ((inputs.to(device), targets.to(device)) for inputs, targets in batches)
        evaluation = member.evaluate(on_device, lockstep.loss)
        record.evaluations[member] = evaluation
        record.validation[member].append((step, evaluation.loss, evaluation.accuracy))
    for name, member in _named(lockstep.cohort):
        row[f"{name}/validation_loss"] = record.evaluations[member].loss
        row[f"{name}/validation_accuracy"] = record.evaluations[member].accuracy
    return row


def _check_finite(losses: Tensor, members: Sequence[Member], cohort: Cohort, first_step: int) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if not len(bad):
        return
    member_number, offset = bad[bad[:, 1].argmin()].tolist()
    member = members[member_number]
    name = next(name for name, candidate in _named(cohort) if candidate is member)
    tensors = (key for key, parameter in member.model.named_parameters() if not torch.isfinite(parameter).all())
    raise FloatingPointError(
        f"the loss of {name} is {losses[member_number, offset].item()} at step {first_step + offset + 1}; "
        f"first tensor that is not finite by now: {next(tensors, 'none')}. A smaller learning rate may help"
    )

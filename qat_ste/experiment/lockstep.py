"""The lockstep loop: one batch, one step of every member, one measurement of their divergence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from qat_ste.base.errors import ArgumentError
from qat_ste.data.dataset import Batch
from qat_ste.divergence import Values
from qat_ste.experiment.batch_source import BatchSource, on_device, seeded
from qat_ste.experiment.checkpoint import Checkpoints, unfit
from qat_ste.experiment.checks import called, explained
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.evaluation import Evaluation, evaluate
from qat_ste.experiment.finiteness import FinitenessCheck, check_row
from qat_ste.experiment.member import Member
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.randomness import seed_noise
from qat_ste.experiment.schedules import Schedule
from qat_ste.experiment.segments import Segments

ACCUMULATION = (
    "1 with this loss: the loss of a batch is not the mean of its parts' losses, as with reduction='sum', class "
    "weights or ignored targets"
)
OTHER_BATCHES = (
    "the batches are others than those it was trained on; pass a loader as new, that gives the same batches each time"
)
Row = dict[str, Any]


class Stopped(Exception):
    """The run stopped on request, after this step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Lockstep:
    """Steps of a whole cohort.

    Generators are seeded by (seed, step, shard) before each member's forward pass, so that dropout draws the same noise
    for every member and after a resume; see ``seed_noise``.
    """

    def __init__(self, cohort: Cohort, loss: Loss, schedule: Schedule, seed: int) -> None:
        self.cohort, self.loss, self.schedule, self.seed = cohort, loss, schedule, seed

    def step(self, step: int, inputs: Tensor, targets: Tensor, segments: Segments | None = None) -> Tensor:
        """Optimizer step ``step`` (0, 1, …) of every member; returns the losses, 0 for members trained elsewhere.

        ``segments`` record the losses of their members themselves.
        """
        factor: Any = called("schedule", self.schedule, step)
        if not (isinstance(factor, Real) and math.isfinite(factor)):
            raise ArgumentError("schedule", factor, f"a function that returns finite numbers (step {step})")
        losses = [inputs.new_zeros((), dtype=torch.float32)] * len(self.cohort.specs)
        for number, member in self.cohort.local.items():
            seed_noise(self.seed, step, self.cohort.device, self.cohort.layout.shard.rank)
            with explained("batches", (inputs, targets), member.model, self.loss, member.accumulate):
                losses[number] = member.step(inputs, targets, self.loss, float(factor)).float()
        if segments is not None:
            segments.step(step, inputs, targets, self.loss, float(factor), self.seed)
        self.cohort.update_slices()
        return torch.stack(losses)


@dataclass
class Record:
    """The losses, evaluations and rows of a training run, by number of the member."""

    losses: Tensor  # members x steps; of this rank until they are summed at the end
    initial: list[Values]
    evaluations: list[Evaluation] = field(default_factory=list)  # the last ones
    validation: list[tuple[int, list[float], list[float | None]]] = field(default_factory=list)  # step, loss, accuracy
    lines: list[str] = field(default_factory=list)  # rows as JSON: less than half the memory of dictionaries

    @property
    def rows(self) -> list[Row]:
        return [json.loads(line) for line in self.lines]

    def plain(self) -> str:
        """Everything but the losses, as JSON, which keeps every bit of a number."""
        evaluations = [asdict(evaluation) for evaluation in self.evaluations]
        plain = json.dumps({"initial": self.initial, "validation": self.validation, "evaluations": evaluations})
        return f'{plain[:-1]}, "rows": [{", ".join(self.lines)}]}}'

    def restore(self, plain: str, losses: Tensor) -> None:
        """Restores a saved state."""
        saved = json.loads(plain)
        self.initial, self.lines = saved["initial"], [json.dumps(row) for row in saved["rows"]]
        self.validation = [tuple(point) for point in saved["validation"]]
        self.evaluations = [Evaluation(**evaluation) for evaluation in saved["evaluations"]]
        self.losses.copy_(losses)


def train(
    lockstep: Lockstep,
    monitor: DivergenceMonitor,
    source: BatchSource,
    steps: int,
    *,
    validation: Iterable[Batch] | None = None,
    steps_per_epoch: int | None = None,
    log_every: int | None = None,
    validate_every: int = 1,
    on_row: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
    segments: Segments | None = None,
) -> Record:
    """Trains the cohort for ``steps`` steps.

    Args:
        source: this rank's shard, starting at the step where ``checkpoints`` resume.
        validation: evaluated every ``validate_every`` epochs and at the end of the run; iterated anew each time.
        steps_per_epoch: by default the whole run.
        log_every: steps between rows; by default a run has 200 rows.
        on_row: called with each row.
        stop: called after each step; true stops the run.
        checkpoints: resumes the run, and saves it when a checkpoint is due, when stopped, and at the end.
        segments: counterparts that start again, trained and measured beside the cohort.

    Raises:
        Stopped: ``stop`` returned true.
        FloatingPointError: a loss, a weight or a metric is not finite; names step, member and tensor.
        ArgumentError: batches or ``loss`` are not usable; ValueError: the checkpoint does not fit this run.
    """
    cohort, ranks = lockstep.cohort, lockstep.cohort.layout.ranks
    log_every = log_every or max(1, steps // 200)
    steps_per_epoch = steps_per_epoch or steps
    record = Record(torch.zeros(len(cohort.specs), steps, device=cohort.device), monitor.initial())
    start = _restore(checkpoints, cohort, monitor, record, steps, source, segments) if checkpoints else 0
    finiteness = FinitenessCheck(monitor, start)

    def emit(row: Row) -> None:
        check_row(row)
        record.lines.append(json.dumps(row))
        called("on_row", on_row, row)

    def emit_segments() -> None:
        for row in segments.report(record.losses) if segments is not None else ():
            emit({"step": row["step"], "epoch": row["step"] / steps_per_epoch} | row)

    logged, done = start - start % log_every, start
    for step, batch in zip(range(start, steps), on_device(source, cohort.device, "batches"), strict=False):
        if step == start:
            with explained("batches", batch, next(iter(cohort.local.values())).model, lockstep.loss):
                cohort.choose_mode(lockstep.loss, *batch, steps - start)
                if segments is not None:
                    segments.execute(cohort.mode)
        before = cohort.stage
        if cohort.enter(step, steps):
            monitor.remapped()
            if segments is not None:
                segments.enter(before)
        if segments is not None:
            segments.restart(step)
        record.losses[:, step] = lockstep.step(step, *batch, segments)
        done = step + 1
        monitor.observe(done, cohort.levels())
        if segments is not None:
            segments.observe(done)
        if done % log_every == 0 or done == steps:
            finiteness.check(record.losses, done)
            _check_accumulation(cohort)
            emit_segments()
            recent = cohort.layout.over_batch(record.losses[:, logged:done])
            logged = done
            lr = cohort.lr * lockstep.schedule(step)
            row: Row = {"step": done, "epoch": done / steps_per_epoch, "lr": lr}
            train_loss = recent.mean(1).tolist()
            now = {number: monitor.now(number) for number in monitor.divergences}
            for name, number in cohort.names.items():
                row[f"{name}/train_loss"] = train_loss[number]
                row |= {f"{name}/{key}": value for key, value in now.get(number, {}).items()}
            emit(row)
        if validation is not None and (done % (validate_every * steps_per_epoch) == 0 or done == steps):
            finiteness.check(record.losses, done)
            emit_segments()
            validated = on_device(seeded(validation, lockstep.seed), cohort.device, "validation")
            record.evaluations = evaluate(cohort, validated, lockstep.loss, lockstep.seed)
            emit(_validation_row(cohort, done, done / steps_per_epoch, record))
        stopping, due = ranks.any([bool(stop()), checkpoints is not None and checkpoints.due(done)])
        if checkpoints is not None and (stopping or due or done == steps):
            finiteness.check(record.losses, done)
            emit_segments()
            _save(checkpoints, done, cohort, monitor, record, source.digest, segments)
        if stopping and done < steps:
            raise Stopped(done)
    if done < steps:
        raise ArgumentError("batches", f"{done} batches", f"enough for {steps} steps")
    record.losses = cohort.layout.over_batch(record.losses)
    return record


def _check_accumulation(cohort: Cohort) -> None:
    """Raises ArgumentError on all ranks if the loss of a batch was not the mean of its parts' losses."""
    if cohort.training.accumulate > 1:
        wrong = any(bool(member.accumulated_wrong) for member in cohort.local.values())
        if any(cohort.layout.ranks.any([wrong])):
            raise ArgumentError("accumulate", cohort.training.accumulate, ACCUMULATION)


def _validation_row(cohort: Cohort, step: int, epoch: float, record: Record) -> Row:
    losses = [evaluation.loss for evaluation in record.evaluations]
    accuracies = [evaluation.accuracy for evaluation in record.evaluations]
    record.validation.append((step, losses, accuracies))
    row: Row = {"step": step, "epoch": epoch}
    for name, number in cohort.names.items():
        row |= {f"{name}/validation_loss": losses[number], f"{name}/validation_accuracy": accuracies[number]}
    return row


def _save(
    checkpoints: Checkpoints,
    step: int,
    cohort: Cohort,
    monitor: DivergenceMonitor,
    record: Record,
    digest: str | None,
    segments: Segments | None,
) -> None:
    """Rank 0 gathers and writes: each member from one of the ranks that train it, metrics and losses from all."""
    layout = cohort.layout
    members = cohort.local | _segment_members(cohort, segments) if layout.shard.rank == 0 else {}
    of_rank = {
        "members": {number: member.state_dict() for number, member in members.items()},
        "divergence": monitor.state_dict(),
        "losses": record.losses,
    } | ({} if segments is None else {"segments": segments.state_dict()})
    if layout.ranks.size > 1:  # pickled one by one: a view would take all of its buffer along
        of_rank = tree_map_only(Tensor, lambda values: values.detach().cpu().clone(), of_rank)
    gathered, digests = layout.ranks.gather(of_rank), layout.ranks.gather(digest)
    if gathered is None:
        return checkpoints.save(None)
    states: dict[int, Any] = {}
    for of_rank in gathered:
        states |= of_rank.pop("members")
    state = {"step": step, "names": cohort.names, "mode": cohort.mode, "record": record.plain()}
    return checkpoints.save(state | {"members": states, "ranks": gathered, "digests": digests})


def _segment_members(cohort: Cohort, segments: Segments | None) -> dict[int, Member]:
    """The members of segments that this rank trains, numbered after those of the whole run."""
    parts = enumerate(segments.parts if segments is not None else (), len(cohort.specs))
    return {number: part.member for number, part in parts if part.member is not None}


def _restore(
    checkpoints: Checkpoints,
    cohort: Cohort,
    monitor: DivergenceMonitor,
    record: Record,
    steps: int,
    source: BatchSource,
    segments: Segments | None,
) -> int:
    """The number of steps done. Batches and generators need no state: they are functions of (seed, step)."""
    state, ranks = checkpoints.take(), cohort.layout.ranks
    step = state["step"] if state else 0
    if any(ranks.any([step != ranks.broadcast(step)])):
        raise ValueError("the ranks see different checkpoints: the run folder must be shared by all of them")
    if state is None:
        return 0

    def check() -> str | None:
        if problem := unfit(state, cohort, monitor, record.losses, record.initial, segments):
            return problem
        digests = state.get("digests")  # older versions have none
        same = digests is None or digests[ranks.rank] in (None, source.read_digest)
        return None if same else OTHER_BATCHES

    def resume() -> None:
        cohort.mode = state["mode"]
        before = cohort.stage
        if cohort.enter(step - 1, steps) and segments is not None:  # the loaded state belongs to this stage
            segments.enter(before)
        for number, member in (cohort.local | _segment_members(cohort, segments)).items():
            member.load_state_dict(state["members"][number])
        cohort.update_slices()
        of_rank = state["ranks"][ranks.rank]
        monitor.load_state_dict(of_rank["divergence"])
        if segments is not None:
            segments.load_state_dict(of_rank["segments"], step)
        record.restore(state["record"], of_rank["losses"])

    for action in (check, resume):
        try:
            problem = action()
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:  # torch checks the rest
            problem = " ".join(str(error).split())[:200]
        if any(ranks.any([problem is not None])):
            raise ValueError(
                f"{checkpoints.paths[0]} (or the one before) does not fit this run: "
                f"{problem or 'another rank refuses it'}; delete it, or choose another folder"
            )
    return step

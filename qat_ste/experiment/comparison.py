"""``compare``: trains a reference and its counterparts in lockstep and says whether the estimator mattered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from qat_ste.base.errors import FLAG, FUNCTION, POSITIVE, ArgumentError, Instance, OrNone, require
from qat_ste.base.sections import DEFAULT_COUNTERPARTS, Execution, Metrics, Quantization, Training
from qat_ste.data.dataset import Batch, Shard
from qat_ste.divergence.outputs import correlation
from qat_ste.estimators import Estimator
from qat_ste.experiment.batch_source import Batches, BatchSource, steps_of
from qat_ste.experiment.breaking_changes import breaking_changes
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.checks import BATCHES, VALIDATION, called, check_model, check_optimizer, of_shard
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import COUNTERPART_LIST
from qat_ste.experiment.drawn_weights import DrawnWeights
from qat_ste.experiment.execution import find_device, warn_of_tf32
from qat_ste.experiment.lockstep import Lockstep, Record, Row, train
from qat_ste.experiment.model_copy import copy_model
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.experiment.optimizer_memory import largest_movement, movements
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.preflight import Preflight
from qat_ste.experiment.randomness import kept_generators, seed_everything
from qat_ste.experiment.ranks import Ranks
from qat_ste.experiment.results import CounterpartResult, MemberResult
from qat_ste.experiment.schedules import schedule_of
from qat_ste.experiment.segment_results import SegmentResults
from qat_ste.experiment.segments import Segments
from qat_ste.experiment.settings import optimizer_name, plain
from qat_ste.experiment.start import Start, start_of
from qat_ste.experiment.verdict import Verdict, decide
from qat_ste.fake_quant.fake_quantize import packed_model, quantize_weights, unpacked_model
from qat_ste.fake_quant.flat_weights import warn_of_saturation
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.optimizers import MakeOptimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison.

    Attributes:
        reference, counterparts: the numbers of each network; see ``MemberResult`` and ``CounterpartResult``.
        verdict: whether the choice of estimator mattered in this run.
        equivalence, equivalence_reason: what was adjusted (``remap``, ``keep``, ``exact``, ``none``), and why.
        lr_factor: α; None where the estimator has none.
        quantized_weights, sequence_weights: numbers of weights, and of those whose changes of level were kept.
        steps: optimizer steps of each network.
        rows: the metrics along the run, as ``on_row`` received them.
        weights: initial, final and re-mapped latent weights of up to 50,000 positions, over the range.
        models: the trained networks of this rank, by name; ``reference`` is one of them.
        movement_in_memory: δ by quantized tensor, under Adam and its kin; see ``movements``.
        segments: the results of segments, where ``training.segment`` asks for them.
        settings: the arguments as plain values, by section.
        start: the network before training, where ``on_start`` asked for it.
    """

    reference: MemberResult
    counterparts: dict[str, CounterpartResult]
    verdict: Verdict
    equivalence: str
    equivalence_reason: str
    lr_factor: float | None
    quantized_weights: int
    sequence_weights: int
    steps: int
    rows: list[Row]
    weights: dict[str, np.ndarray]
    models: dict[str, nn.Module]
    settings: dict[str, Any]
    movement_in_memory: dict[str, float] = field(default_factory=dict)
    segments: SegmentResults | None = None
    start: Start | None = None

    def __getstate__(self) -> dict[str, Any]:
        packed = {id(model): packed_model(copy_model(model)) for model in self.models.values()}
        models = {name: packed[id(model)] for name, model in self.models.items()}
        if any(parametrize.is_parametrized(module) for model, _ in packed.values() for module in model.modules()):
            log.warning("the models are left out: their own parametrizations cannot be pickled (save state_dict())")
            models = {}
        return vars(self) | {"models": models}

    def __setstate__(self, state: dict[str, Any]) -> None:
        models = {id(packed): unpacked_model(*packed) for packed in state["models"].values()}
        vars(self).update(state | {"models": {name: models[id(packed)] for name, packed in state["models"].items()}})

    def report(self, folder: str | Path) -> Path:
        """Writes ``results.json``, ``metrics.jsonl``, figures and ``report.html``; returns the path of the page.

        Raises:
            OSError: the folder cannot be written to.
            RuntimeError: the page could not be made; the other files are written.
        """
        from qat_ste.experiment.run_report import write_run  # imports matplotlib

        return write_run(self, Path(folder))


def compare(
    build_model: Callable[[], nn.Module],
    batches: Batches | Callable[[Shard], Batches],
    *,
    loss: Loss,
    estimator: Estimator,
    optimizer: MakeOptimizer,
    lr: float,
    quantization: Quantization = Quantization(),
    training: Training = Training(),
    metrics: Metrics = Metrics(),
    execution: Execution = Execution(),
    validation: Iterable[Batch] | Callable[[Shard], Iterable[Batch]] | None = None,
    counterparts: Sequence[str] = DEFAULT_COUNTERPARTS,
    checkpoints: Checkpoints | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_start: Callable[[Start], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> Comparison:
    """Trains a model with ``estimator`` and its counterparts on the same batches; measures how far they drift apart.

    Args:
        build_model: returns a new plain model; called once, with the generators seeded by ``training.seed``.
        batches: (inputs, targets), iterated again whenever they end, or ``TrainingBatches``; with several ranks, each
            rank's shard, or a function that returns it.
        loss: (outputs, targets) -> scalar.
        optimizer: called with parameter groups and ``lr=``, once per member.
        lr: the reference's learning rate η.
        validation: batches evaluated every ``metrics.validate_every`` epochs; without them there are no accuracies.
        counterparts: ``ste``, ``mirrored``, ``ste_once``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        checkpoints: resumes the run from a folder, and saves it there.
        on_row: called with each row of metrics.
        on_start: called before the first step with what quantization does to the network, evaluated for it.
        stop: called after each step; true stops the run.
        progress: whether to show a progress bar.

    Under ``torch.distributed`` every rank calls this; each returns the same numbers.

    Raises:
        ArgumentError: an argument is not allowed; the message starts with its name.
        FloatingPointError: a loss is not finite.
        Stopped: ``stop`` returned true.
    """
    require(FUNCTION, build_model=build_model, loss=loss, optimizer=optimizer, on_row=on_row, stop=stop)
    require(BATCHES, batches=batches)
    require(OrNone(VALIDATION), validation=validation)
    require(OrNone(FUNCTION), on_start=on_start)
    if on_start is not None and validation is None:
        raise ArgumentError("on_start", on_start, "None without validation, which it evaluates")
    require(FLAG, progress=progress)
    require(POSITIVE, lr=lr)
    require(COUNTERPART_LIST, counterparts=counterparts)
    require(OrNone(Instance(Checkpoints)), checkpoints=checkpoints)
    for kind, argument in (
        (Estimator, {"estimator": estimator}),
        (Quantization, {"quantization": quantization}),
        (Training, {"training": training}),
        (Metrics, {"metrics": metrics}),
        (Execution, {"execution": execution}),
    ):
        require(Instance(kind), **argument)
    check_optimizer(optimizer, lr)
    device, seed = find_device(execution.device), training.seed
    warn_of_tf32(device)
    with ExitStack() as stack:
        stack.enter_context(kept_generators(device))
        seed_everything(seed)
        model = check_model(build_model()).to(device)
        quantize_weights(model, quantization, estimator)
        cohort = Cohort(model, estimator, optimizer, lr, counterparts, training, execution, Ranks())
        if cohort.layout.ranks.rank == 0:
            warn_of_saturation(model)
        # Worker processes of the loaders start here, before there are members whose memory they would share.
        shard = cohort.layout.shard
        rank_batches = of_shard("batches", batches, shard, BATCHES)
        rank_validation = None if validation is None else of_shard("validation", validation, shard, VALIDATION)
        steps, steps_per_epoch = steps_of(training, rank_batches)
        if progress and cohort.layout.ranks.rank == 0:
            terminal = TerminalLogger(steps, line_seconds=5)
            stack.callback(terminal.close, 0)
            on_row = _both(terminal.log_row, on_row)
        done = min(checkpoints.step, steps) if checkpoints else 0  # a step beyond the last is refused later
        source = BatchSource(rank_batches, done, seed)
        if done < steps:
            Preflight(cohort, loss, source.first(), seed).run(rank_validation, checkpoints is not None)
        start = None
        if on_start is not None and rank_validation is not None:
            start = start_of(cohort, rank_validation, loss, seed)
            called("on_start", on_start, start)
        cohort.make_members()
        segments = None
        if lengths := training.segments:
            if lengths[-1] >= steps:
                raise ArgumentError("segment", training.segment, f"shorter than the run of {steps} steps")
            segments = Segments(cohort, lengths, steps)
        if cohort.layout.ranks.rank == 0 and (problem := largest_movement(movements(cohort, steps))):
            log.info(problem)
        drawn = DrawnWeights(cohort)
        monitor = DivergenceMonitor(cohort, metrics.sequence_weights, seed)
        record = train(
            Lockstep(cohort, loss, schedule_of(training, steps), seed),
            monitor,
            source,
            steps,
            validation=rank_validation,
            steps_per_epoch=steps_per_epoch,
            log_every=metrics.every,
            validate_every=metrics.validate_every,
            on_row=on_row,
            stop=stop,
            checkpoints=checkpoints,
            segments=segments,
        )
    sections = {"quantizer": quantization, "train": training, "metrics": metrics, "runtime": execution}
    settings: dict[str, Any] = {name: plain(vars(section)) for name, section in sections.items()} | {
        "counterparts": list(counterparts)
    }
    settings |= {"estimator": repr(estimator), "optimizer": {"name": optimizer_name(optimizer), "lr": lr}}
    settings |= {"model": type(model).__name__}
    comparison = _summarize(cohort, monitor, record, drawn, steps, settings)
    return replace(comparison, start=start, segments=None if segments is None else SegmentResults.of(segments))


def _both(first: Callable[[Row], None], second: Callable[[Row], None]) -> Callable[[Row], None]:
    def call(row: Row) -> None:
        first(row)
        second(row)

    return call


def _summarize(
    cohort: Cohort,
    monitor: DivergenceMonitor,
    record: Record,
    drawn: DrawnWeights,
    steps: int,
    settings: dict[str, Any],
) -> Comparison:
    shares = monitor.shares()
    of_members = [_evaluation(record, number) | shares[number] for number in range(len(cohort.specs))]
    # By member: two names of one run are measured once.
    results = {number: _counterpart(monitor, record, number, of_members[number]) for number in monitor.divergences}
    counterparts = {name: results[number] for name, number in cohort.counterparts.items()}
    errors = {name: result.weight_alignment_error for name, result in counterparts.items()}
    adjustment, delta = cohort.adjustment, movements(cohort, steps)
    for member in cohort.local.values():
        member.weights.update_modules()
    return Comparison(
        reference=MemberResult.of(of_members[0]),
        counterparts=counterparts,
        verdict=decide(
            errors,
            adjustment.equivalence,
            adjustment.covered,
            seed=cohort.training.seed,
            breaks=breaking_changes(cohort),
            steps=steps,
            memory=largest_movement(delta),
        ),
        movement_in_memory=delta,
        equivalence=str(adjustment.equivalence),
        equivalence_reason=str(adjustment),
        lr_factor=cohort.equivalent.lr_factor if cohort.equivalent else None,
        quantized_weights=cohort.quantized_weights,
        sequence_weights=monitor.sequence_weights,
        steps=steps,
        rows=record.rows,
        weights=drawn.arrays(),
        models={name: cohort.local[number].model for name, number in cohort.names.items() if number in cohort.local},
        settings=settings,
    )


def _evaluation(record: Record, number: int) -> dict[str, Any]:
    if not record.evaluations:
        return {"test_accuracy": None, "test_loss": None}
    evaluation = record.evaluations[number]
    return {"test_accuracy": evaluation.accuracy, "test_loss": evaluation.loss}


def _counterpart(
    monitor: DivergenceMonitor, record: Record, number: int, of_member: dict[str, Any]
) -> CounterpartResult:
    numbers = of_member | record.initial[number]
    total, layers = monitor.results(number)
    numbers |= total | monitor.now(number)
    numbers["train_loss_correlation"] = correlation(*record.losses[[0, number]].cpu())
    if record.evaluations:
        numbers["validation_loss_correlation"] = _curves([losses for _, losses, _ in record.validation], number)
        if of_member["test_accuracy"] is not None:
            accuracies = [accuracies for _, _, accuracies in record.validation]
            numbers["validation_accuracy_correlation"] = _curves(accuracies, number)
            numbers |= record.evaluations[number].against_reference
    result: CounterpartResult = CounterpartResult.of(numbers | {"layers": layers})
    return result


def _curves(points: Sequence[Sequence[float | None]], number: int) -> float | None:
    curves = torch.tensor([[point[0], point[number]] for point in points], dtype=torch.float64).T
    return correlation(*curves)

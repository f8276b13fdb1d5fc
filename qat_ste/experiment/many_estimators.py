"""Compares many estimators with their STE counterparts under one optimizer, all on the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Quantization, Training
from qat_ste.base.text import of_error
from qat_ste.data.dataset import Batch
from qat_ste.divergence import Trajectories, TrajectoryPair
from qat_ste.divergence.alignment import WeightAlignmentError
from qat_ste.estimators import Estimator
from qat_ste.experiment.batch_source import Batches, BatchSource
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import MemberSpec
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.randomness import kept_generators, seed_noise
from qat_ste.experiment.schedules import schedule_of
from qat_ste.experiment.segment_results import SegmentResults
from qat_ste.experiment.segments import Segments
from qat_ste.experiment.verdict import decide
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.fake_quant.flat_layout import level_indices, split_into_chunks
from qat_ste.optimizers import MakeOptimizer


@dataclass(frozen=True)
class Cell:
    """One estimator under one optimizer, seed and learning rate; numbers that do not exist are None.

    ``ste``, ``naive`` and ``jitter`` are weight alignment errors, as in ``compare``. ``refused`` says why the theorem
    does not cover the estimator; ``fault`` why there are no numbers. ``g_ratio`` is L₊/L₋; ``jumps`` says whether g
    jumps. Accuracy and shares are those of the reference. ``segment_outcome`` and the ratios with their 95 % intervals
    are those of segments, where ``training.segment`` has a length.
    """

    ste: float | None = None
    naive: float | None = None
    jitter: float | None = None
    equivalent_lr_jitter: float | None = None
    equivalence: str | None = None
    equivalence_reason: str | None = None
    refused: str | None = None
    lr_factor: float | None = None
    g_ratio: float | None = None
    jumps: bool | None = None
    test_accuracy: float | None = None
    moved_fraction: float | None = None
    saturated_fraction: float | None = None
    fault: str | None = None
    segment_outcome: str | None = None
    segment_ste_over_jitter: float | None = None
    segment_ste_over_jitter_low: float | None = None
    segment_ste_over_jitter_high: float | None = None
    segment_naive_over_jitter: float | None = None


def train_cells(
    build_model: Callable[[], nn.Module],
    batches: Batches,
    *,
    loss: Loss,
    estimators: Mapping[str, Estimator],
    optimizer: MakeOptimizer,
    lr: float,
    quantization: Quantization = Quantization(),
    training: Training = Training(),
    test: Iterable[Batch] = (),
) -> dict[str, Cell]:
    """One cell per estimator, by name, with the numbers that ``compare`` gives for each alone.

    The arguments are those of ``compare``. All runs train in lockstep, once where several cells need the same run.
    If a run does not finish or its estimator raises, the cells that need it have a ``fault``.
    """
    runs: dict[object, _Run] = {}
    cells: dict[str, Cell | _EstimatorRuns] = {}
    steps, seed = training.steps, training.seed
    with kept_generators(torch.device("cpu")):
        for name, estimator in estimators.items():
            torch.manual_seed(seed)
            try:
                model = quantize_weights(build_model(), quantization, estimator)
                if len(estimator.stages) > 1:
                    raise ValueError("an estimator that changes during training has no cell; use qat-run")
                cohort = Cohort(model, estimator, optimizer, lr, ["ste", "naive", "jitter"], training)
                cells[name] = _EstimatorRuns(cohort, estimator, runs, steps)
            except Exception as error:  # a foreign estimator may raise anything
                cells[name] = Cell(fault=of_error(error))
        schedule = schedule_of(training, steps)
        segmented = [cell for cell in cells.values() if isinstance(cell, _EstimatorRuns) and cell.segments is not None]
        for step, (inputs, targets) in zip(range(steps), BatchSource(batches, 0, seed), strict=False):
            for cell in segmented:
                cell.restart(step)
            for run in runs.values():
                seed_noise(seed, step, inputs.device)
                run.step(step, inputs, targets, loss, schedule(step))
            for cell in segmented:
                cell.step(step, inputs, targets, loss, schedule(step), seed)
    return {name: cell if isinstance(cell, Cell) else cell.cell(test) for name, cell in cells.items()}


class _Run:
    """A member and its trajectory; ``fault`` says why training stopped."""

    def __init__(self, cohort: Cohort, spec: MemberSpec) -> None:
        self.member, self.fault, self.losses = cohort.member(spec), "", list[float]()
        if cohort.scales_move:
            raise ArgumentError("scale", "one that moves", "a fixed one here; use compare or qat-run")
        if cohort.rotates:
            raise ArgumentError("rotation", "a size", "None here; use compare or qat-run")
        chunks = split_into_chunks(cohort.tensors, 0, cohort.quantized_weights)
        weights = self.member.weights.buffer[None]
        self.trajectories = Trajectories(weights, [chunks], [cohort.chunk_groups])
        self._levels = partial(level_indices, cohort.chunk_groups, weights)
        self.trajectory = self.trajectories[0]

    def step(self, step: int, inputs: Tensor, targets: Tensor, loss: Loss, factor: float) -> None:
        if self.fault:
            return
        try:
            value = self.member.step(inputs, targets, loss, factor).item()
            self.losses.append(value)
            self.trajectories.observe(step + 1, self._levels())
            if self.trajectories.full:
                self.trajectories.settle()
            if not (math.isfinite(value) and self.trajectory.path.isfinite().all()):
                self.fault = f"the loss is {value} at step {step + 1}; a smaller learning rate may help"
        except Exception as error:
            self.fault = f"{of_error(error)}, at step {step + 1}"


class _EstimatorRuns:
    """The runs of one estimator; others may share them."""

    def __init__(self, cohort: Cohort, estimator: Estimator, runs: dict[object, _Run], steps: int) -> None:
        self.cohort, self.runs, self.not_covered = cohort, {}, estimator.not_covered
        for name, number in cohort.names.items():
            spec = cohort.specs[number]
            key = spec, estimator if spec.remap else None  # M depends on the estimator
            if key not in runs:
                runs[key] = _Run(cohort, spec)
            self.runs[name] = runs[key]
        self.segments: Segments | None = None
        if lengths := [length for length in cohort.training.segments if length < steps]:
            reference = self.runs["reference"].member
            cohort.local, cohort.slices = {0: reference}, reference.weights.buffer[None]
            self.segments = Segments(cohort, lengths[:1], steps)

    def restart(self, step: int) -> None:
        """Before step ``step``: starts the segments that begin with it."""
        if self.segments is not None and not self.runs["reference"].fault:
            self.segments.restart(step)

    def step(self, step: int, inputs: Tensor, targets: Tensor, loss: Loss, factor: float, seed: int) -> None:
        """The step of all members in segments, after that of the reference."""
        reference = self.runs["reference"]
        if self.segments is None or reference.fault:
            return
        try:
            self.segments.step(step, inputs, targets, loss, factor, seed)
            self.segments.observe(step + 1)
        except Exception as error:  # a foreign estimator may raise anything
            reference.fault = f"{of_error(error)}, in a segment at step {step + 1}"

    def _of_segments(self) -> dict[str, Any]:
        if self.segments is None:
            return {}
        self.segments.report(torch.tensor([self.runs["reference"].losses]))
        (verdict,) = SegmentResults.of(self.segments).verdicts.values()
        ste, naive = verdict.ste_over_jitter, verdict.naive_over_jitter
        return {
            "segment_outcome": verdict.outcome,
            "segment_ste_over_jitter": ste.value if ste else 0.0,
            "segment_ste_over_jitter_low": ste.low if ste else None,
            "segment_ste_over_jitter_high": ste.high if ste else None,
            "segment_naive_over_jitter": naive.value if naive else None,
        }

    def cell(self, test: Iterable[Batch]) -> Cell:
        for name, run in self.runs.items():
            if run.fault:
                return Cell(fault=f"{name}: {run.fault}")
        cohort, reference = self.cohort, self.runs["reference"]
        errors = {name: self._error(name) for name in ("ste", "naive", "jitter")}
        equivalence = cohort.adjustment.equivalence
        assumptions = cohort.equivalent.assumptions if cohort.equivalent else None
        trajectory = reference.trajectory
        reference.trajectories.settle()
        chunks = ((chunk.quantizer, trajectory.weights[chunk.where]) for chunk in trajectory.chunks)
        saturated = sum(int(quantizer.saturated(weights).count_nonzero()) for quantizer, weights in chunks)
        return Cell(
            ste=errors["ste"],
            naive=errors["naive"],
            jitter=errors["jitter"],
            equivalent_lr_jitter=decide(errors, equivalence).equivalent_lr_jitter,
            equivalence=str(equivalence),
            equivalence_reason=str(cohort.adjustment),
            refused=self.not_covered if cohort.equivalent else cohort.adjustment.reason,
            lr_factor=cohort.equivalent.lr_factor if cohort.equivalent else None,
            g_ratio=assumptions.upper / assumptions.lower if assumptions else None,
            jumps=math.isinf(assumptions.lipschitz) if assumptions else None,
            test_accuracy=_accuracy(reference.member.model, test),
            moved_fraction=int(trajectory.moved(slice(None)).count_nonzero()) / cohort.quantized_weights,
            saturated_fraction=saturated / cohort.quantized_weights,
            **self._of_segments(),
        )

    def _error(self, name: str) -> float | None:
        """The weight alignment error of a counterpart; None if its weights did not move."""
        cohort = self.cohort
        pair = TrajectoryPair(
            self.runs["reference"].trajectory,
            self.runs[name].trajectory,
            len(cohort.tensors),
            cohort.weight_map(cohort.names[name]),
        )
        distance, path = WeightAlignmentError(pair).sums().sum(0).tolist()
        return distance / path if path else None


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterable[Batch]) -> float | None:
    """Accuracy in evaluation mode; None without batches of classes."""
    model.eval()
    correct = total = 0
    for inputs, targets in batches:
        outputs = model(inputs)
        if targets.ndim == 1 and outputs.ndim == 2:
            correct += int((outputs.argmax(1) == targets).count_nonzero())
            total += len(targets)
    return correct / total if total else None

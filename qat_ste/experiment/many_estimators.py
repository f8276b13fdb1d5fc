"""Many estimators under one optimizer: how far their STE counterparts end from each, all on the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qat_ste.base.text import of_error
from qat_ste.data.dataset import Batch
from qat_ste.divergence import Pair, Trajectories
from qat_ste.divergence.alignment import WeightAlignmentError
from qat_ste.estimators import Estimator
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import Recipe
from qat_ste.experiment.gradient_update import L2Penalty
from qat_ste.experiment.lockstep import Batches, from_step, seed_noise
from qat_ste.experiment.member import Loss, Update
from qat_ste.experiment.verdict import decide
from qat_ste.fake_quant.fake_quantize import WEIGHTED, Pattern, quantize_weights
from qat_ste.fake_quant.flat_layout import levels_of, pieces_of
from qat_ste.optimizers import MakeOptimizer
from qat_ste.optimizers.schedules import Schedule, by_name


@dataclass(frozen=True)
class Cell:
    """One estimator under one optimizer, seed and learning rate; numbers are None where there was nothing to count.

    ``ste``, ``naive`` and ``jitter`` are weight alignment errors, as ``compare`` has them. ``refused`` says why the
    theorem does not cover the estimator; ``fault`` why there are no numbers. ``g_ratio`` is L₊/L₋ of the
    estimator; ``jumps`` says whether its g does. Accuracy and shares are the reference's.
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


def train_cells(
    build_model: Callable[[], nn.Module],
    batches: Batches,
    *,
    loss: Loss,
    bits: int,
    estimators: Mapping[str, Estimator],
    optimizer: MakeOptimizer,
    lr: float,
    steps: int,
    test: Iterable[Batch] = (),
    schedule: Schedule | None = None,
    include: Sequence[Pattern] = WEIGHTED,
    exclude: Sequence[Pattern] = (),
    biases: bool = False,
    saturation: str = "range",
    levels: str | Sequence[float] | None = None,
    l2: L2Penalty | None = None,
    seed: int = 0,
) -> dict[str, Cell]:
    """A cell for each of the estimators, by name; the same numbers as ``compare`` finds for each by itself.

    The arguments are those of ``compare``. All runs are trained in lockstep, once where several cells need the same.
    Where one comes to no end, or its estimator raises anything, that is the ``fault`` of the cells that need it.
    """
    runs: dict[object, _Run] = {}
    cells: dict[str, Cell | _Estimator] = {}
    with torch.random.fork_rng(devices=[]):
        for name, estimator in estimators.items():
            torch.manual_seed(seed)
            try:
                model = quantize_weights(
                    build_model(),
                    bits,
                    estimator,
                    include,
                    exclude,
                    biases=biases,
                    saturation=saturation,
                    levels=levels,
                )
                cells[name] = _Estimator(model, estimator, optimizer, lr, runs, Update(l2=l2))
            except Exception as error:  # a foreign estimator may raise anything
                cells[name] = Cell(fault=of_error(error))
        schedule = schedule or by_name("cosine", steps, 0.02)
        for step, (inputs, targets) in zip(range(steps), from_step(0, batches), strict=False):
            for run in runs.values():
                seed_noise(seed, step, inputs.device)
                run.step(step, inputs, targets, loss, schedule(step))
    return {name: found if isinstance(found, Cell) else found.cell(test) for name, found in cells.items()}


class _Run:
    """A member, its way, and why it came to no end if it did not."""

    def __init__(self, cohort: Cohort, recipe: Recipe) -> None:
        self.member, self.fault = cohort.member(recipe), ""
        pieces = pieces_of(cohort.parts, 0, cohort.quantized_weights)
        weights = self.member.weights.buffer[None]
        self.trajectories = Trajectories(weights, pieces, cohort.blocks)
        self._levels = partial(levels_of, cohort.blocks, weights)
        self.trajectory = self.trajectories[0]

    def step(self, step: int, inputs: Tensor, targets: Tensor, loss: Loss, factor: float) -> None:
        if self.fault:
            return
        try:
            value = self.member.step(inputs, targets, loss, factor).item()
            self.trajectories.observe(step + 1, self._levels())
            if self.trajectories.full:
                self.trajectories.settle()
            if not (math.isfinite(value) and self.trajectory.path.isfinite().all()):
                self.fault = f"the loss is {value} at step {step + 1}; a smaller learning rate may help"
        except Exception as error:
            self.fault = f"{of_error(error)}, at step {step + 1}"


class _Estimator:
    """The runs of one estimator, some of which it may share with others."""

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        optimizer: MakeOptimizer,
        lr: float,
        runs: dict[object, _Run],
        update: Update,
    ) -> None:
        if len(estimator.stages) > 1:
            raise ValueError("an estimator that changes while it trains has no cell, qat-run compares it")
        cohort = Cohort(model, estimator, optimizer, lr, ["ste", "naive", "jitter"], update=update)
        self.cohort, self.runs, self.not_covered = cohort, {}, estimator.not_covered
        for name, number in cohort.names.items():
            recipe = cohort.recipes[number]
            key = recipe, estimator if recipe.remap else None  # M is the estimator's
            if key not in runs:
                runs[key] = _Run(cohort, recipe)
            self.runs[name] = runs[key]

    def cell(self, test: Iterable[Batch]) -> Cell:
        for name, run in self.runs.items():
            if run.fault:
                return Cell(fault=f"{name}: {run.fault}")
        cohort, reference = self.cohort, self.runs["reference"]
        errors = {name: self._error(name) for name in ("ste", "naive", "jitter")}
        equivalence = cohort.adjustment.equivalence
        known = cohort.pair.assumptions if cohort.pair else None
        weights, way = reference.trajectory.weights, reference.trajectory
        self.runs["reference"].trajectories.settle()
        saturated = sum(int(p.quantizer.saturated(weights[p.where]).count_nonzero()) for p in way.pieces)
        return Cell(
            ste=errors["ste"],
            naive=errors["naive"],
            jitter=errors["jitter"],
            equivalent_lr_jitter=decide(errors, equivalence).equivalent_lr_jitter,
            equivalence=str(equivalence),
            equivalence_reason=str(cohort.adjustment),
            refused=self.not_covered if cohort.pair else cohort.adjustment.reason,
            lr_factor=cohort.pair.lr_factor if cohort.pair else None,
            g_ratio=known.upper / known.lower if known else None,
            jumps=math.isinf(known.lipschitz) if known else None,
            test_accuracy=_accuracy(reference.member.model, test),
            moved_fraction=int(way.moved(slice(None)).count_nonzero()) / cohort.quantized_weights,
            saturated_fraction=saturated / cohort.quantized_weights,
        )

    def _error(self, name: str) -> float | None:
        """The weight alignment error of a counterpart; None where it did not move."""
        cohort = self.cohort
        pair = Pair(
            self.runs["reference"].trajectory,
            self.runs[name].trajectory,
            len(cohort.parts),
            cohort.weight_map(cohort.names[name]),
        )
        distance, way = WeightAlignmentError(pair).sums().sum(0).tolist()
        return distance / way if way else None


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterable[Batch]) -> float | None:
    """Share of right answers in evaluation mode; None where there are no batches of classes."""
    model.eval()
    right = total = 0
    for inputs, targets in batches:
        outputs = model(inputs)
        if targets.ndim == 1 and outputs.ndim == 2:
            right += int((outputs.argmax(1) == targets).count_nonzero())
            total += len(targets)
    return right / total if total else None

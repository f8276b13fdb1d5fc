"""``compare``: train a reference and its counterparts in lockstep and say whether the estimator mattered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qat_ste.data.dataset import Batch, Shard
from qat_ste.divergence import WeightMap
from qat_ste.divergence.outputs import correlation
from qat_ste.estimators import Estimator
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.checks import check_arguments, check_model, check_optimizer, of_shard
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.execution import Execution
from qat_ste.experiment.gradient_update import Clipping, L2Penalty, WeightDecay
from qat_ste.experiment.lockstep import Batches, Lockstep, Record, Row, from_step, train
from qat_ste.experiment.member import Loss, Update
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.experiment.ranks import Ranks
from qat_ste.experiment.verdict import Verdict, decide
from qat_ste.fake_quant.fake_quantize import WEIGHTED, Pattern, quantize_weights
from qat_ste.fake_quant.flat_layout import pieces_of
from qat_ste.optimizers import MakeOptimizer
from qat_ste.optimizers.schedules import Schedule, by_name

OF_OUTPUTS = (  # what only validation batches can tell
    "validation_loss_correlation",
    "validation_accuracy_correlation",
    "inference_agreement",
    "incorrect_inference_agreement",
    "logit_mse",
    "logit_mae",
)


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison found.

    ``reference`` and each of ``counterparts`` hold their numbers as attributes, under the names of
    ``results.json``; None where there was nothing to count. ``models`` are the trained networks (here, on this rank).
    """

    reference: SimpleNamespace
    counterparts: dict[str, SimpleNamespace]
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


def compare(
    build_model: Callable[[], nn.Module],
    batches: Batches | Callable[[Shard], Batches],
    *,
    loss: Loss,
    bits: int,
    estimator: Estimator,
    optimizer: MakeOptimizer,
    lr: float,
    steps: int,
    validation: Iterable[Batch] | Callable[[Shard], Iterable[Batch]] | None = None,
    steps_per_epoch: int | None = None,
    schedule: Schedule | None = None,
    counterparts: Sequence[str] = ("ste", "naive", "jitter"),
    include: Sequence[Pattern] = WEIGHTED,
    exclude: Sequence[Pattern] = (),
    biases: bool = False,
    saturation: str = "range",
    levels: str | Sequence[float] | None = None,
    clipping: Clipping | None = None,
    l2: L2Penalty | None = None,
    weight_decay: WeightDecay | None = None,
    sequence_weights: int = 1_000_000,
    log_every: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_row: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    execution: Execution = Execution(),
    placement: str = "together",
    checkpoints: Checkpoints | None = None,
) -> Comparison:
    """Trains a model with ``estimator`` and its counterparts on the same batches and measures how they part.

    Args:
        build_model: returns a new plain model; called once, with the generators seeded by ``seed``.
        batches: (inputs, targets), iterated anew whenever they end, or ``TrainingBatches``; of several ranks each
            one's shard, or a function that makes it.
        loss: (outputs, targets) -> scalar.
        optimizer: called with parameter groups and ``lr=``, once for each member.
        lr: the reference's learning rate η.
        validation: batches evaluated at the end of each epoch; without them nothing is known of accuracies.
        schedule: factor on all learning rates by step; by default 2 % linear warm-up, then cosine to 0.
        counterparts: ``ste``, ``mirrored``, ``ste_once``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        include, exclude, biases, saturation, levels: as for ``quantize_weights``.
        clipping, l2, weight_decay: of gradients, and of latent weights; the theorem does not cover them, but the
            counterpart ``mirrored`` does (docs/equivalence.md).
        sequence_weights: weights of which change events are kept; of more a fixed sample is.
        on_row: called with each row of metrics as it is made; ``stop`` is asked after each step.
        execution: precision, accumulation of gradients, torch's way of executing.
        placement: of the members where several ranks train them; see ``Layout``.
        checkpoints: where the run is continued from and saved to.

    Where ``torch.distributed`` is set up, all its ranks have to call this; each returns the same numbers.

    Raises:
        ValueError, TypeError: an argument is not what is asked for; the message starts with its name.
        FloatingPointError: a loss is not finite.
        Stopped: ``stop`` said so.
    """
    check_arguments(locals())
    check_optimizer(optimizer, lr)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = check_model(build_model()).to(device)
        quantize_weights(model, bits, estimator, include, exclude, biases=biases, saturation=saturation, levels=levels)
        update = Update(clipping, l2, weight_decay)
        cohort = Cohort(model, estimator, optimizer, lr, counterparts, execution, Ranks(), placement, update)
        # Processes that read ahead start here, before there are members whose memory they would share.
        shard = cohort.layout.shard
        own = of_shard("batches", batches, shard)
        own_validation = None if validation is None else of_shard("validation", validation, shard)
        done = min(checkpoints.step, steps) if checkpoints else 0  # one that claims more is refused later
        source = from_step(done, own)
        cohort.make_members()
        drawn = DrawnWeights(cohort)
        lockstep = Lockstep(cohort, loss, schedule or by_name("cosine", steps, 0.02), seed)
        monitor = DivergenceMonitor(cohort, sequence_weights, seed)
        record = train(
            lockstep,
            monitor,
            source,
            steps,
            validation=own_validation,
            steps_per_epoch=steps_per_epoch or (len(own) if isinstance(own, Sized) else None),
            log_every=log_every,
            on_row=on_row,
            stop=stop,
            checkpoints=checkpoints,
        )
    return _summarize(cohort, monitor, record, drawn, steps)


def _summarize(
    cohort: Cohort, monitor: DivergenceMonitor, record: Record, drawn: DrawnWeights, steps: int
) -> Comparison:
    shares = monitor.shares()
    own = [_own(record, number) | shares[number] for number in range(len(cohort.recipes))]
    # By member: two names of one run need not be measured twice.
    numbers = {number: _counterpart(monitor, record, number, own[number]) for number in monitor.divergences}
    counterparts = {name: numbers[number] for name, number in cohort.counterparts.items()}
    errors = {name: found.weight_alignment_error for name, found in counterparts.items()}
    return Comparison(
        reference=SimpleNamespace(**own[0]),
        counterparts=counterparts,
        verdict=decide(errors, cohort.adjustment.equivalence, cohort.adjustment.covered),
        equivalence=str(cohort.adjustment.equivalence),
        equivalence_reason=str(cohort.adjustment),
        lr_factor=cohort.pair.lr_factor if cohort.pair else None,
        quantized_weights=cohort.quantized_weights,
        sequence_weights=monitor.sequence_weights,
        steps=steps,
        rows=record.rows,
        weights=drawn.arrays(),
        models={name: cohort.local[number].model for name, number in cohort.names.items() if number in cohort.local},
    )


def _own(record: Record, number: int) -> dict[str, Any]:
    if not record.evaluations:
        return {"test_accuracy": None, "test_loss": None}
    evaluation = record.evaluations[number]
    return {"test_accuracy": evaluation.accuracy, "test_loss": evaluation.loss}


def _counterpart(monitor: DivergenceMonitor, record: Record, number: int, own: dict[str, Any]) -> SimpleNamespace:
    numbers = dict.fromkeys(OF_OUTPUTS) | own | record.initial[number]
    total, layers = monitor.results(number)
    numbers |= total | monitor.now(number)
    numbers["train_loss_correlation"] = correlation(*record.losses[[0, number]].cpu())
    if record.evaluations:
        numbers["validation_loss_correlation"] = _curves([losses for _, losses, _ in record.validation], number)
        if own["test_accuracy"] is not None:
            accuracies = [accuracies for _, _, accuracies in record.validation]
            numbers["validation_accuracy_correlation"] = _curves(accuracies, number)
            numbers |= record.evaluations[number].against_reference
    return SimpleNamespace(**numbers, layers=layers)


def _curves(points: Sequence[Sequence[float | None]], number: int) -> float | None:
    curves = torch.tensor([[point[0], point[number]] for point in points], dtype=torch.float64).T
    return correlation(*curves)


class DrawnWeights:
    """Initial and final latent weights in units of max, of at most ``limit`` weights, and R(w_ref) by counterpart."""

    def __init__(self, cohort: Cohort, limit: int = 50_000) -> None:
        self.cohort = cohort
        ranks, size = cohort.layout.ranks, cohort.last - cohort.first
        share = -(-limit // ranks.size)
        self._drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:share].sort().values
        self._initial = [self._take(weights) for weights in cohort.slices]

    def arrays(self) -> dict[str, np.ndarray]:
        """``<member>/initial``, ``/final`` and ``/mapped_reference``; empty but on rank 0."""
        cohort = self.cohort
        found = {}
        for name, number in cohort.names.items():
            found[f"{name}/initial"] = self._initial[number]
            found[f"{name}/final"] = self._take(cohort.slices[number])
            if number:
                found[f"{name}/mapped_reference"] = self._take(cohort.slices[0], cohort.weight_map(number))
        gathered = cohort.layout.ranks.gather(found) or []
        return {name: np.concatenate([of_rank[name] for of_rank in gathered]) for name in found} if gathered else {}

    def _take(self, weights: Tensor, weight_map: WeightMap | None = None) -> np.ndarray:
        taken = []
        for piece in pieces_of(self.cohort.parts, self.cohort.first, self.cohort.last):
            start, stop = piece.where.start, piece.where.stop
            inside = self._drawn[(self._drawn >= start) & (self._drawn < stop)] - start
            some = weights[piece.where]
            some = weight_map(some, piece.quantizer) if weight_map else some
            taken.append((some.double() / piece.quantizer.max).cpu()[inside].float().numpy())
        return np.concatenate(taken or [np.zeros(0, np.float32)])

"""``compare``: train a reference and its counterparts in lockstep and say whether the estimator mattered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qat_ste.cohort import Cohort, L2Penalty, Loss, MakeOptimizer, Member
from qat_ste.divergence.metric import ratio
from qat_ste.divergence.outputs import correlation, inference_metrics
from qat_ste.estimators import Estimator
from qat_ste.fake_quantize import WEIGHTED, Pattern, quantize_weights
from qat_ste.schedules import Schedule, by_name
from qat_ste.training import Batches, DivergenceMonitor, Lockstep, Record, Row, train
from qat_ste.verdict import Verdict, decide

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
    ``results.json``; None where there was nothing to count. ``models`` are the trained networks.
    """

    reference: SimpleNamespace
    counterparts: dict[str, SimpleNamespace]
    verdict: Verdict
    equivalence: str
    lr_factor: float | None
    quantized_weights: int
    sequence_weights: int
    steps: int
    rows: list[Row]
    weights: dict[str, np.ndarray]
    models: dict[str, nn.Module]


def compare(
    build_model: Callable[[], nn.Module],
    batches: Batches,
    *,
    loss: Loss,
    bits: int,
    estimator: Estimator,
    optimizer: MakeOptimizer,
    lr: float,
    steps: int,
    validation: Batches | None = None,
    steps_per_epoch: int | None = None,
    schedule: Schedule | None = None,
    counterparts: Sequence[str] = ("ste", "naive", "jitter"),
    include: Sequence[Pattern] = WEIGHTED,
    exclude: Sequence[Pattern] = (),
    biases: bool = False,
    saturation: str = "range",
    l2: L2Penalty | None = None,
    sequence_weights: int = 1_000_000,
    log_every: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_row: Callable[[Row], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Trains a model with ``estimator`` and its counterparts on the same batches and measures how they part.

    Args:
        build_model: returns a new plain model; called once, with the generators seeded by ``seed``.
        batches: (inputs, targets), iterated anew whenever they end.
        loss: (outputs, targets) -> scalar.
        optimizer: called with parameter groups and ``lr=``, once for each member.
        lr: the reference's learning rate η.
        validation: batches evaluated at the end of each epoch; without them nothing is known of accuracies.
        schedule: factor on all learning rates by step; by default 2 % linear warm-up, then cosine to 0.
        counterparts: any of ``ste``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        include, exclude, biases, saturation: as for ``quantize_weights``.
        sequence_weights: weights of which change events are kept; of more a fixed sample is.
        on_row: called with each row of metrics as it is made; ``stop`` is asked after each step.

    Raises:
        ValueError: an argument is out of its bounds, or the theorem cannot apply to ``ste``.
        FloatingPointError: a loss is not finite.
        Stopped: ``stop`` said so.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    if not (isinstance(lr, int | float) and 0 < lr < float("inf")):
        raise ValueError(f"lr must be a positive finite number, got {lr!r}")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build_model().to(device)
        quantize_weights(model, bits, estimator, include, exclude, biases=biases, saturation=saturation)
        cohort = Cohort(model, optimizer, lr, counterparts)
        lockstep = Lockstep(cohort, loss, schedule or by_name("cosine", steps, 0.02), l2, seed)
        monitor = DivergenceMonitor(cohort, sequence_weights, seed)
        record = train(
            lockstep,
            monitor,
            batches,
            steps,
            validation=validation,
            steps_per_epoch=steps_per_epoch,
            log_every=log_every,
            on_row=on_row,
            stop=stop,
        )
    return _summarize(cohort, monitor, record, steps)


def _summarize(cohort: Cohort, monitor: DivergenceMonitor, record: Record, steps: int) -> Comparison:
    # By member: two names of one run need not be measured twice.
    numbers = {member: _counterpart(cohort, monitor, record, member) for member in monitor.pairs}
    counterparts = {name: numbers[member] for name, member in cohort.counterparts.items()}
    errors = {name: found.weight_alignment_error for name, found in counterparts.items()}
    names = {"reference": cohort.reference, **cohort.counterparts}
    sampled = monitor.sampled
    total = len(cohort.reference.weights.buffer)
    return Comparison(
        reference=SimpleNamespace(**_own(monitor, record, cohort.reference)),
        counterparts=counterparts,
        verdict=decide(errors, cohort.equivalence),
        equivalence=str(cohort.equivalence),
        lr_factor=cohort.pair.lr_factor if cohort.pair else None,
        quantized_weights=total,
        sequence_weights=total if sampled is None else len(sampled),
        steps=steps,
        rows=record.rows,
        weights=_weights_to_draw(cohort, monitor),
        models={name: member.model for name, member in names.items()},
    )


def _own(monitor: DivergenceMonitor, record: Record, member: Member) -> dict[str, Any]:
    trajectory = monitor.trajectories[member]
    ones = torch.ones_like(trajectory.moved)
    evaluation = record.evaluations.get(member)
    return {
        "test_accuracy": evaluation.accuracy if evaluation else None,
        "test_loss": evaluation.loss if evaluation else None,
        "moved_fraction": ratio(trajectory.moved, ones),
        "saturated_fraction": ratio(trajectory.saturated, ones),
    }


def _counterpart(cohort: Cohort, monitor: DivergenceMonitor, record: Record, member: Member) -> SimpleNamespace:
    numbers = dict.fromkeys(OF_OUTPUTS) | _own(monitor, record, member) | record.initial[member]
    total, layers = monitor.divergences[member].results(monitor.parts)
    members = cohort.members
    losses = record.losses[[members.index(cohort.reference), members.index(member)]].cpu()
    numbers |= total
    numbers["train_loss_correlation"] = correlation(*losses)
    if record.evaluations:
        reference, own = record.evaluations[cohort.reference], record.evaluations[member]
        curves = zip(record.validation[cohort.reference], record.validation[member], strict=True)
        points = torch.tensor([[a[1], b[1], a[2] or 0.0, b[2] or 0.0] for a, b in curves], dtype=torch.float64)
        numbers["validation_loss_correlation"] = correlation(points[:, 0], points[:, 1])
        if own.accuracy is not None:
            numbers["validation_accuracy_correlation"] = correlation(points[:, 2], points[:, 3])
            numbers |= inference_metrics(reference.outputs, own.outputs, own.targets)
    return SimpleNamespace(**numbers, layers=layers)


def _weights_to_draw(cohort: Cohort, monitor: DivergenceMonitor, limit: int = 50_000) -> dict[str, np.ndarray]:
    """Initial and final latent weights in units of max, of at most ``limit`` weights, and R(w_ref) by counterpart."""
    size = len(cohort.reference.weights.buffer)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:limit].sort().values
    max_ = cohort.reference.weights.quantizer.max

    def relative(weights: Tensor) -> np.ndarray:
        return (weights.double() / max_).cpu()[drawn].float().numpy()

    found = {}
    for name, member in {"reference": cohort.reference, **cohort.counterparts}.items():
        found[f"{name}/initial"] = relative(monitor.trajectories[member].initial)
        found[f"{name}/final"] = relative(member.weights.buffer)
        if member in monitor.pairs:
            found[f"{name}/mapped_reference"] = relative(monitor.pairs[member].mapped_reference())
    return found

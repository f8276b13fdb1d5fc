"""Runs the tables of docs/segments.md on scikit-learn's digits: python scripts/segments.py PART…; prints Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from parts import run_parts
from qat_ste import Execution, Quantization, Training, compare
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.estimators import Estimator, Ewgs, Tanh
from qat_ste.experiment.comparison import Comparison
from qat_ste.experiment.counterparts import MemberSpec, adjust
from qat_ste.models import small_resnet
from qat_ste.theory.equivalence import SteEquivalent

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, momentum=0.9)
TANH = Tanh(5.5)
LENGTHS = (5, 20, 50)


def run(
    lr: float,
    steps: int,
    seed: int,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    estimator: Estimator = TANH,
    lengths: Sequence[int] = LENGTHS,
    counterparts: Sequence[str] = ("ste", "naive", "jitter"),
    order: int | None = None,
    **training: Any,
) -> Comparison:
    """The comparison of small_resnet on digits; ``order`` is the seed of the data's order, by default ``seed``."""
    data = digits()

    def batches(shard: Shard) -> Any:
        return data.train_batches(64, True, seed if order is None else order, CPU, shard)

    return compare(
        small_resnet,
        batches,
        loss=F.cross_entropy,
        estimator=estimator,
        optimizer=optimizer,
        lr=lr,
        quantization=Quantization(bits=2),
        training=Training(steps=steps, seed=seed, segment=list(lengths), **training),
        execution=Execution(device="cpu"),
        counterparts=list(counterparts),
    )


def table(rows: dict[str, Comparison], lengths: Sequence[int] = LENGTHS, counterparts: Sequence[str] = ()) -> None:
    """Prints whole-run errors, and those of segments with their intervals."""
    names = counterparts or list(next(iter(rows.values())).counterparts)
    print("| run | " + " | ".join(["segment", *names, "ste / jitter", "naive / jitter"]) + " |")
    print("|---|" + "---:|" * (len(names) + 3))
    for title, comparison in rows.items():
        errors = [comparison.counterparts[name].weight_alignment_error or 0 for name in names]
        print(f"| {title} | whole run | " + " | ".join(f"{error:.3g}" for error in errors) + " | | |", flush=True)
        assert comparison.segments is not None
        for length in lengths:
            results, verdict = comparison.segments.by_length[length], comparison.segments.verdicts[length]
            cells = [str(results[name].weight_alignment_error or 0) for name in names]
            ratios = [str(verdict.ste_over_jitter), str(verdict.naive_over_jitter)]
            print(f"| | {length} | " + " | ".join(cells + ratios) + " |", flush=True)


def trial() -> None:
    """Three seeds, at η and η/5."""
    for lr, steps in ((0.01, 200), (0.002, 400)):
        table({f"η = {lr}, seed {seed}": run(lr, steps, seed) for seed in (1, 2, 3)})


@contextmanager
def wrong_factor() -> Iterator[None]:
    """α too large by 10 %."""
    of = MemberSpec.of

    def wrong(name: str, *arguments: Any) -> MemberSpec:
        spec = of(name, *arguments)
        values = vars(spec) | ({"lr_factor": 1.1 * spec.lr_factor} if spec.remap else {})
        return MemberSpec(**values)

    with mock.patch.object(MemberSpec, "of", wrong):
        yield


@contextmanager
def wrong_map() -> Iterator[None]:
    """M of tanh with k = 4.5, α of k = 5.5."""

    def wrong(adjustment: Any, estimator: Estimator, quantizer: Any, *_: Any) -> Any:
        adjusted, equivalent = adjust(adjustment, Tanh(4.5), quantizer)
        assert equivalent is not None
        equivalent._maps.lr_factor = SteEquivalent(estimator, quantizer).lr_factor
        return adjusted, equivalent

    with mock.patch("qat_ste.experiment.cohort.adjust", wrong):
        yield


def controls() -> None:
    """Runs that have to fail, at η/5."""
    settings: dict[str, Any] = {"lr": 0.002, "steps": 400, "seed": 1}
    rows = {"tanh": run(**settings)}
    with wrong_factor():
        rows["α too large by 10 %"] = run(**settings)
    with wrong_map():
        rows["M of k = 4.5"] = run(**settings)
    rows["EWGS, δ = 1"] = run(**settings, estimator=Ewgs(1.0))
    rows["L2 penalty of 5e-3"] = run(**settings, l2=5e-3)
    table(rows)


def adam() -> None:
    """A short and a long memory of squares, at η and η/10."""
    for beta in (0.95, 0.999):
        optimizer = partial(torch.optim.Adam, betas=(0.9, beta))
        rows = {
            f"β₂ = {beta}, η = {lr}": run(lr, steps, 1, optimizer=optimizer, counterparts=("ste", "jitter"))
            for lr, steps in ((1e-3, 150), (1e-4, 300))
        }
        table(rows)


def coverage() -> None:
    """40 orders of the data from one initialization: how many intervals hold the mean."""
    steps, length = 100, 5
    errors = []
    for order in range(40):
        comparison = run(0.005, steps, 1, lengths=[length], counterparts=("ste", "jitter"), order=100 + order)
        assert comparison.segments is not None
        results = comparison.segments.by_length[length]
        errors.append([results[name].weight_alignment_error for name in ("ste", "jitter")])
    for place, name in enumerate(("ste", "jitter")):
        intervals: list[Any] = [each[place] for each in errors]
        mean = float(np.mean([interval.value for interval in intervals]))
        held = sum(interval.low <= mean <= interval.high for interval in intervals)
        print(f"{name}: mean {mean:.4g}, held by {held} of 40 intervals")


PARTS = {"trial": trial, "controls": controls, "adam": adam, "coverage": coverage}

if __name__ == "__main__":
    run_parts(__doc__, PARTS)

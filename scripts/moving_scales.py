"""Runs the tables of docs/equivalence.md about scales, on digits: python scripts/moving_scales.py PART…"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from benchmarks.memory import bytes_a_member
from parts import run_parts
from qat_ste import Execution, Quantization, Training, compare
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.estimators import Estimator, StableQat, Ste, Tanh
from qat_ste.experiment.comparison import Comparison
from qat_ste.quantizers.scales import LearnedScale
from qat_ste.report.pages import png
from qat_ste.report.seeds import interval_of_mean
from qat_ste.report.style import STYLE

CPU = torch.device("cpu")
PLAIN, MOMENTUM = torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9)
SCALES: dict[str, Any] = {
    "fixed": "initial_absmax",
    "absmax": "absmax",
    "learned": LearnedScale(initial="absmax", lsq_factor=False),
    "learned at η/10": LearnedScale(initial="absmax", lsq_factor=False, lr=0.1),
}
TANH = Tanh(5.5)
MEMBERS = ("ste", "mirrored", "naive", "jitter")
MEASURED = [("initial_absmax", "ste")] + [(scale, of) for scale in ("absmax", "learned") for of in ("ste", "mirrored")]
FIGURE = Path(__file__).parents[1] / "docs" / "equivalence" / "delta.png"


def network() -> nn.Module:
    """Two convolutions of 8 and 16 channels, as in the trial."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def run(
    lr: float,
    steps: int,
    seed: int,
    scale: Any,
    optimizer: Callable[..., torch.optim.Optimizer] = MOMENTUM,
    estimator: Estimator = TANH,
    counterparts: Sequence[str] = MEMBERS,
    bits: int = 2,
) -> Comparison:
    """The comparison, one scale a tensor."""
    data = digits()

    def batches(shard: Shard) -> Any:
        return data.train_batches(64, True, seed, CPU, shard)

    return compare(
        network,
        batches,
        loss=F.cross_entropy,
        estimator=estimator,
        optimizer=optimizer,
        lr=lr,
        quantization=Quantization(bits=bits, scale=scale),
        training=Training(steps=steps, seed=seed),
        execution=Execution(device="cpu"),
        validation=lambda shard: data.test_batches(CPU, shard),
        counterparts=list(counterparts),
    )


def errors(comparison: Comparison) -> list[float]:
    """Weight alignment errors of the counterparts, in their order."""
    return [result.weight_alignment_error or 0.0 for result in comparison.counterparts.values()]


def trial() -> None:
    """Fixed, computed and learned scales, at η and at η/5 with five times the steps."""
    optimizers: dict[str, tuple[Any, float, int]] = {
        "SGD, momentum 0.9": (MOMENTUM, 0.01, 200),
        "SGD": (PLAIN, 0.1, 200),  # as far a step as with momentum
        "Adam, β₂ = 0.95": (partial(torch.optim.Adam, betas=(0.9, 0.95)), 1e-3, 200),
    }
    print("| optimizer | scale | seed | " + " | ".join(f"`{name}`" for name in MEMBERS) + " |")
    print("|---|---|---:|" + "---:|" * len(MEMBERS))
    for optimizer, (make, lr, steps) in optimizers.items():
        for scale, rule in SCALES.items():
            for seed in (1, 2, 3):
                pairs = [errors(run(lr / k, steps * k, seed, rule, make)) for k in (1, 5)]
                cells = [f"{high:.3g} → {low:.3g}" for high, low in zip(*pairs, strict=True)]
                print(f"| {optimizer} | {scale} | {seed} | " + " | ".join(cells) + " |", flush=True)


def accuracy() -> None:
    """Test accuracy after 500 steps, mean of five seeds with the 95 % interval of Student's t."""
    estimators = {"STE": Ste(), "tanh": TANH, "StableQAT": StableQat()}
    print("| scale | " + " | ".join(estimators) + " |\n|---|" + "---:|" * len(estimators))
    for scale, rule in SCALES.items():
        cells = []
        for estimator in estimators.values():
            found = [
                run(0.01, 500, seed, rule, estimator=estimator, counterparts=["replica"]).reference.test_accuracy or 0.0
                for seed in range(1, 6)
            ]
            mean, low, high = interval_of_mean(found)
            cells.append(f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
        print(f"| {scale} | " + " | ".join(cells) + " |", flush=True)


def delta() -> None:
    """Error of `ste` under Adam against δ, the largest of the tensors; η·steps is constant. Also draws the figure."""
    print("| β₂ | η | δ | `ste` | `jitter` |\n|---:|---:|---:|---:|---:|")
    points: dict[float, list[tuple[float, float]]] = {}
    for beta in (0.9, 0.99, 0.999):
        for lr in (1e-4, 3e-4, 1e-3, 3e-3):
            adam = partial(torch.optim.Adam, betas=(0.9, beta))
            found = run(lr, round(0.15 / lr), 1, "he", adam, counterparts=["ste", "jitter"])
            ste, jitter = errors(found)
            largest = max(found.movement_in_memory.values())
            points.setdefault(beta, []).append((largest, ste))
            print(f"| {beta} | {lr:g} | {largest:.3g} | {ste:.3g} | {jitter:.3g} |", flush=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.2))
        axis = figure.subplots()
        for (beta, of_beta), marker in zip(points.items(), "osD", strict=True):
            axis.plot(*zip(*of_beta, strict=True), marker=marker, ls=":", label=f"β₂ = {beta:g}")
        axis.set(xscale="log", yscale="log", xlabel="δ", ylabel="weight alignment error of ste")
        axis.legend()
        FIGURE.parent.mkdir(exist_ok=True)
        FIGURE.write_bytes(png(figure))


def memory() -> None:
    """Bytes a weight that a counterpart adds to training with SGD and momentum, metrics included."""
    print("| granularity | " + " | ".join(f"{scale}, `{member}`" for scale, member in MEASURED) + " |")
    print("|---|" + "---:|" * len(MEASURED))
    for granularity in ("tensor", "channel", 32, 16):
        cells = [
            f"{bytes_a_member(scale, granularity, ['naive', member], width=1024):.0f}" for scale, member in MEASURED
        ]
        print(f"| {granularity} | " + " | ".join(cells) + " |")


PARTS = {"trial": trial, "accuracy": accuracy, "delta": delta, "memory": memory}

if __name__ == "__main__":
    run_parts(__doc__, PARTS)

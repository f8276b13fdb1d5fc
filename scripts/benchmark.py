#!/usr/bin/env python3
"""What a comparison costs beside plain training of the same network.

    python scripts/benchmark.py                       keras_cnn, two members, batches of 128
    python scripts/benchmark.py --model small_cnn --members 4
    python scripts/benchmark.py --model resnet50 --image-size 64 --batch-size 16 --steps 2 --rounds 8

In one process and in turn: (1) fp32 steps of the plain network, no quantizer; (2) the same number of steps of every
member, no metrics; (3) with all metrics at the default rate of logging. Prints the median over rounds of the ratios
to (1), so that a slow moment of the machine falls on all three.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat_ste import models
from qat_ste.cohort import Cohort
from qat_ste.estimators import Tanh
from qat_ste.fake_quantize import quantize_weights
from qat_ste.monitor import DivergenceMonitor
from qat_ste.optimizers import KerasSGD
from qat_ste.schedules import constant
from qat_ste.training import Lockstep

OWN = {"keras_cnn": 28, "flax_cnn": 28, "small_cnn": 8}  # networks for grey images of this size
COUNTERPARTS = ("ste", "naive", "jitter", "replica")
LOG_EVERY = 10  # a row every 10 steps is what 200 rows are in a run of 2,000 steps


class Plain:
    """Steps of the plain network, one after the other for as many members."""

    def __init__(self, build_model: Callable[[], nn.Module], members: int, lr: float) -> None:
        self.models = [build_model() for _ in range(members)]
        self.optimizers = [KerasSGD(model.parameters(), lr=lr, momentum=0.9) for model in self.models]

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class Members:
    """Steps of a cohort, with or without metrics."""

    def __init__(self, build_model: Callable[[], nn.Module], members: int, lr: float, metrics: bool) -> None:
        model = quantize_weights(build_model(), 2, Tanh(5.5), ["Conv2d"], biases=True)
        optimizer = partial(KerasSGD, momentum=0.9)
        cohort = Cohort(model, optimizer, lr, COUNTERPARTS[: members - 1])
        self.lockstep = Lockstep(cohort, F.cross_entropy, constant(), seed=0)
        self.monitor = DivergenceMonitor(cohort, sequence_weights=1_000_000, seed=0) if metrics else None
        self.done = 0
        self.metrics_seconds = 0.0

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        self.lockstep.step(self.done, inputs, targets)
        self.done += 1
        if self.monitor is not None:
            start = time.perf_counter()
            self.monitor.observe(self.done)
            if self.done % LOG_EVERY == 0:
                for divergence in self.monitor.divergences.values():
                    divergence.now()
            self.metrics_seconds += time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="keras_cnn", help="one of ours or of torchvision")
    parser.add_argument("--image-size", type=int, default=224, help="for torchvision's networks")
    parser.add_argument("--members", type=int, choices=range(2, 6), default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    if arguments.model in OWN:
        build_model, channels, size = getattr(models, arguments.model), 1, OWN[arguments.model]
    else:
        build_model, channels, size = partial(models.torchvision_model, arguments.model), 3, arguments.image_size
    inputs = torch.rand(arguments.batch_size, channels, size, size).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (arguments.batch_size,))
    with_metrics = Members(build_model, arguments.members, 1e-3, metrics=True)
    contestants: dict[str, Plain | Members] = {
        "plain fp32 steps": Plain(build_model, arguments.members, lr=1e-3),
        "cohort, no metrics": Members(build_model, arguments.members, 1e-3, metrics=False),
        "cohort, all metrics": with_metrics,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    metrics_seconds: list[float] = []
    for round_ in range(arguments.rounds + 1):
        taken = dict.fromkeys(contestants, 0.0)
        with_metrics.metrics_seconds = 0.0
        for _ in range(arguments.steps):
            for name, contestant in contestants.items():
                start = time.perf_counter()
                contestant.step(inputs, targets)
                taken[name] += time.perf_counter() - start
        if round_:  # the first warms up
            for name in contestants:
                seconds[name].append(taken[name])
            metrics_seconds.append(with_metrics.metrics_seconds)

    plain, bare, full = seconds.values()
    milliseconds = 1e3 * statistics.median(plain) / arguments.steps / arguments.members
    setting = f"{arguments.members} members, batch {arguments.batch_size}, {torch.get_num_threads()} threads"
    print(f"{arguments.model}, {setting}")
    print(f"plain fp32 step of one network: {milliseconds:.2f} ms")
    for name, values in seconds.items():
        ratios = sorted(value / base for value, base in zip(values, plain, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(f"{name:20}  {statistics.median(ratios):6.3f} x plain   (quartiles {low:.3f} to {high:.3f})")
    quantizer = statistics.median((b - p) / p for b, p in zip(bare, plain, strict=True))
    metrics = statistics.median(m / p for m, p in zip(metrics_seconds, plain, strict=True))
    beside_step = statistics.median(m / (f - m) for m, f in zip(metrics_seconds, full, strict=True))
    print(f"share of plain: quantizer and estimator {100 * quantizer:.1f} %, metrics {100 * metrics:.1f} %")
    net = statistics.median((f - b) / b for f, b in zip(full, bare, strict=True))
    print(f"metrics beside a step of the cohort: {100 * beside_step:.1f} %")
    print(f"the same, less what the forward pass is spared: {100 * net:.1f} %")


if __name__ == "__main__":
    main()

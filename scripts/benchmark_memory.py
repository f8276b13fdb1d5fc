#!/usr/bin/env python3
"""What the metrics of a comparison add to the memory of its training, in bytes a quantized weight and member.

    python scripts/benchmark_memory.py                       resnet50, two members, after 50 and 500 steps
    python scripts/benchmark_memory.py --model resnet18 --steps 20

Trains without metrics, then with all of them, on the CPU (Linux); prints by how much the highest resident memory of the
process grew, everything included, and what the metrics hold between steps.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.memory import held
from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Lockstep
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.models import torchvision_model
from qat_ste.optimizers.schedules import constant


def highest_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 500])
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = quantize_weights(torchvision_model(arguments.model, num_classes=10), 2, Tanh(5.5), ["Conv2d"])
    cohort = Cohort(model, partial(torch.optim.SGD, momentum=0.9), arguments.lr, ["ste"])
    lockstep = Lockstep(cohort, F.cross_entropy, constant(), seed=0)
    shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)

    def step(number: int) -> None:
        lockstep.step(number, torch.rand(shape), torch.randint(0, 10, shape[:1]))

    for number in range(6):
        if number == 3:
            forget_highest()
        step(number)
    without, weights = highest_resident_bytes(), cohort.quantized_weights * len(cohort.recipes)
    forget_highest()
    monitor = DivergenceMonitor(cohort, sequence_weights=1_000_000, seed=0)
    print(f"{arguments.model}: {cohort.quantized_weights:,} quantized weights, {len(cohort.recipes)} members")
    for number in range(max(arguments.steps)):
        step(number)
        monitor.observe(number + 1)
        if (number + 1) % 10 == 0 or number + 1 in arguments.steps:
            for divergence in monitor.divergences.values():
                divergence.now()
        if number + 1 in arguments.steps:
            for divergence in monitor.divergences.values():
                divergence.results([part.name for part in cohort.parts])
            moved = monitor.shares()[0]["moved_fraction"] or 0.0
            between = held(monitor) / weights
            peak = (highest_resident_bytes() - without) / weights
            print(f"after {number + 1:4} steps: highest resident memory +{peak:.1f} bytes a weight and member, "
                  f"{between:.1f} of them held; {100 * moved:.2f} % of the weights have moved")  # fmt: skip


if __name__ == "__main__":
    main()

"""A toy of a few hundred weights, each of which a gradient pushes back and forth in a phase of its own."""

from __future__ import annotations

import math

import torch
from torch import nn

from qat_ste import compare
from qat_ste.estimators import Tanh
from tests.arguments import sorted_arguments

WEIGHTS, SWINGS = 200, 2


def build() -> nn.Module:
    layer = nn.Linear(WEIGHTS, 1, bias=False)
    nn.init.uniform_(layer.weight, -0.17, 0.17)
    return layer


def errors(optimizer, lr: float, steps: int, build=build, dtype=torch.float32, **changes) -> dict[str, float]:
    """Alignment errors under loss w·x(t), x a cosine of another phase for each weight, |x| = 10."""
    phase = torch.linspace(0, 2 * math.pi, WEIGHTS, dtype=dtype)
    gradients = [torch.cos(2 * math.pi * SWINGS * t / steps + phase)[None] for t in range(steps)]
    arguments = {
        "loss": lambda outputs, _: outputs.sum(), "bits": 2, "estimator": Tanh(5.5), "schedule": lambda step: 1.0,
        "counterparts": ["ste", "mirrored"],
    }  # fmt: skip
    batches = [(x, torch.zeros(1)) for x in gradients]
    found = compare(
        build, batches, optimizer=optimizer, lr=lr, **sorted_arguments(arguments | {"steps": steps} | changes)
    )
    return {name: numbers.weight_alignment_error for name, numbers in found.counterparts.items()}

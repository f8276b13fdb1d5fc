"""The theorem where it can be seen: given gradients that swing slowly, so that nothing but g tells the runs apart."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import Quantization, Training, compare
from qat_ste.estimators import Tanh

WEIGHTS, SWINGS = 200, 2


def build() -> nn.Module:
    layer = nn.Linear(WEIGHTS, 1, bias=False)
    nn.init.uniform_(layer.weight, -0.17, 0.17)
    return layer


def errors(optimizer, lr: float, steps: int) -> tuple[float, float]:
    """Alignment errors of ``ste`` and ``naive`` under loss w·x(t), x a cosine of another phase for each weight."""
    phase = torch.linspace(0, 2 * math.pi, WEIGHTS)
    gradients = [torch.cos(2 * math.pi * SWINGS * t / steps + phase)[None] for t in range(steps)]
    found = compare(
        build, [(x, torch.zeros(1)) for x in gradients], loss=lambda outputs, _: outputs.sum(),
        estimator=Tanh(5.5), optimizer=optimizer, lr=lr, quantization=Quantization(include=["Linear"]),
        training=Training(steps=steps, schedule=lambda step: 1.0, seed=0), counterparts=["ste", "naive"],
    )  # fmt: skip
    return found.counterparts["ste"].weight_alignment_error, found.counterparts["naive"].weight_alignment_error


@pytest.mark.parametrize(
    "momentum",
    [
        {},
        pytest.param({"momentum": 0.9}, marks=pytest.mark.slow),
        pytest.param({"momentum": 0.9, "nesterov": True}, marks=pytest.mark.slow),
    ],
)
def test_sgd_follows_the_remapped_ste_ever_closer_as_the_learning_rate_falls(momentum):
    optimizer = partial(torch.optim.SGD, **momentum)
    reach = 1 - momentum.get("momentum", 0)  # momentum multiplies the learning rate by 1/(1 - μ)
    large, small = (errors(optimizer, reach / steps, steps) for steps in (200, 2000))
    assert small[0] < large[0] / (3 if momentum else 8)  # momentum's memory of ten steps must be short too
    assert small[0] < small[1] / (2 if momentum else 20)
    assert small[1] > 0.03, "negative control: without α and M a smaller learning rate does not bring them together"


@pytest.mark.slow
def test_adam_follows_the_ste_with_nothing_adjusted_if_its_memory_is_short():
    steps = 3000
    short, long = (partial(torch.optim.Adam, betas=(0.9, beta2), eps=1e-12) for beta2 in (0.95, 0.999))
    follows, drifts = (errors(adam, 0.4 / steps, steps)[0] for adam in (short, long))
    assert follows < 0.02
    assert follows < drifts / 4, "negative control: over 1,000 steps g does not stay what it was"

"""A comparison on a few real digits, and the same training as a loop of one's own has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat_ste import Comparison, compare, quantize_weights
from qat_ste.data.digits import digits
from qat_ste.estimators import Estimator, Tanh
from qat_ste.experiment.schedules import by_name
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from tests.arguments import WEIGHTS, sorted_arguments
from tests.experiment.odd_networks import Build, plain

STEPS, LR = 24, 0.02
Batches = list[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Any]
SGD = partial(torch.optim.SGD, momentum=0.9)


@cache
def batches(size: int = 16, count: int = 5) -> Batches:
    """Of the real digits, the first ones in their order."""
    read = digits().train_batches(size, False, 0, torch.device("cpu"))
    return [batch for _, batch in zip(range(count), read.starting_at(0), strict=False)]


def compared(build: Build = plain, data: Batches | None = None, seed: int = 0, **changes: Any) -> Comparison:
    """A short comparison."""
    data = batches() if data is None else data
    arguments: dict[str, Any] = {
        "loss": F.cross_entropy,
        "lr": LR,
        "every": 1,
        "validation": data[:2],
        "steps_per_epoch": 10,
    }
    arguments |= {"steps": STEPS, "seed": seed} | changes
    return compare(build, data, estimator=Tanh(5.5), optimizer=SGD, **sorted_arguments(arguments))


@dataclass
class Slow:
    """A plain training: losses, latent weights, their ways in all steps, and ranges; by tensor."""

    losses: list[float]
    weights: dict[str, Tensor]
    ways: list[dict[str, Tensor]]
    ranges: dict[str, float]


def slow(build: Build, data: Batches, seed: int, estimator: Estimator, loss: Loss) -> Slow:
    """A member that keeps weights and learning rate, as a loop of one's own has it: nothing flat, nothing shared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = quantize_weights(build(), WEIGHTS, estimator)
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=LR)
    schedule, losses, ways = by_name("cosine", STEPS, 0.02), [], []
    for step in range(STEPS):
        before = _latent(model)
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step)
        optimizer.zero_grad()
        value = loss(model(data[step % len(data)][0]), data[step % len(data)][1])
        value.backward()
        optimizer.step()
        losses.append(value.item())
        ways.append(difference(before, _latent(model)))
    ranges = {name: float(quantize.quantizer.max) for name, _, quantize in quantized_tensors(model)}
    return Slow(losses, _latent(model), ways, ranges)


def _latent(model: nn.Module) -> dict[str, Tensor]:
    """By tensor, tied ones once."""
    found = {id(weights): (name, weights) for name, weights, _ in reversed(list(quantized_tensors(model)))}
    return {name: weights.detach().double().clone() for name, weights in found.values()}


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (a[name] - b[name]).abs() for name in a}


def over_range(values: Mapping[str, Tensor], ranges: Mapping[str, float]) -> float:
    return sum(some.sum().item() / ranges[name] for name, some in values.items())

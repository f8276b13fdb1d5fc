"""Invents tuning studies: curves over learning rates that theory shifts by α, with noise of seeds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GRID, SEEDS = (0.001, 0.003, 0.01, 0.03, 0.1), (1, 2, 3, 4, 5)
NAMES = ("tanh", "sine", "arctan", "dsq", "ede", "ewgs", "exp", "gauss", "laplace", "parabola", "power", "reste", "rbnn",
         "swish_sign", "tent", "xnor", "ste (again)")  # fmt: skip


def cell(
    estimator: str, lr: float, seed: int, validation: float | None, test: float | None = None, fault: str | None = None,
    role: str = "grid", of: str | None = None, metric: str = "accuracy",
) -> dict[str, Any]:  # fmt: skip
    """A cell whose test metric is by default its validation metric."""
    numbers = dict.fromkeys(
        ("train_loss", "validation_accuracy", "validation_loss", "test_accuracy", "test_loss"), None
    ) | {f"validation_{metric}": validation, f"test_{metric}": validation if test is None else test}
    head = {"estimator": estimator, "role": role, "of": of, "lr": lr, "seed": seed}
    return {**head, **numbers, "fault": fault}


def content(
    cells: Sequence[Mapping[str, Any]], factors: Mapping[str, float | None], grid: Sequence[float] = GRID,
    seeds: Sequence[int] = SEEDS, metric: str = "accuracy", margin: float = 0.01, extensions: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """The content of ``tune.json``; ``factors`` has α of each estimator, None where the theorem gives none."""
    estimators = {
        name: {"lr_factor": factor, "equivalence": "none" if factor is None else "remap", "reason": "because",
               "refused": "its gradient <is> not positive" if factor is None else None}
        for name, factor in factors.items()
    }  # fmt: skip
    return {"schema": 1, "command": "qat-tune", "versions": {"torch": "2"}, "settings": {"a": {"b": 1}}, "optimizer": "sgd",
            "metric": metric, "unit": "" if metric == "accuracy" else "bits per byte", "margin": margin,
            "grid": list(grid), "extensions": extensions, "seeds": list(seeds), "estimators": estimators,
            "cells": [dict(each) for each in cells]}  # fmt: skip


def flat(
    values: Mapping[str, Mapping[float, Sequence[float | None]]], factors: Mapping[str, float | None] | None = None,
    **other: Any,
) -> dict[str, Any]:  # fmt: skip
    """A study from the metric of each estimator by rate and seed; None: the seed diverged."""
    seeds = range(1, 1 + max(len(numbers) for curve in values.values() for numbers in curve.values()))
    metric = other.get("metric", "accuracy")
    cells = [
        cell(name, rate, seed, number, fault="the loss is nan at step 3" if number is None else None, metric=metric)
        for name, curve in values.items()
        for rate, numbers in curve.items()
        for seed, number in enumerate(numbers, 1)
    ]
    factors = factors or {name: 0.5 for name in values if name != "ste"}
    return content(cells, factors, **({"seeds": seeds, "grid": sorted(values["ste"])} | other))


def invented(
    names: Sequence[str] = NAMES, seeds: Sequence[int] = SEEDS, grid: Sequence[float] = GRID, metric: str = "accuracy",
    noise: float = 0.004, **other: Any,
) -> dict[str, Any]:  # fmt: skip
    """Bell-shaped curves over log rates, four estimators off by up to 20 margins; ``laplace`` lacks a rate beyond 0.1."""
    random_ = random.Random(7)
    factors = {name: 1.0 if name == "ste (again)" else round(random_.uniform(0.3, 2.2), 3) for name in names}
    gains = {name: {3: -0.03, 5: 0.022, 8: -0.2, 11: 0.006}.get(n, 0.0) for n, name in enumerate(names)}
    cells: list[dict[str, Any]] = []

    def value(rate: float, gain: float, seed: int, key: str) -> float:
        """Accuracy at a rate of the STE; the noise of a seed is mostly shared."""
        shared = random.Random(f"{seed} {rate:.6g}").gauss(0, noise)
        alone = random.Random(f"{seed} {rate:.6g} {key}").gauss(0, noise / 2)
        height = 0.1 + 0.85 * math.exp(-((math.log(rate / 0.02) / 2.6) ** 4))
        accuracy = min(max(height + gain + shared + alone, 0.1), 0.999)
        return accuracy if metric == "accuracy" else 1.2 + 2 * (0.95 - accuracy)

    def add(name: str, rate: float, factor: float, gain: float, **place: Any) -> None:
        for seed in seeds:
            broken = rate * factor > 0.15 and seed == seeds[0]
            numbers = [None if broken else value(rate * factor, gain, seed, f"{name} {split}") for split in ("v", "t")]
            fault = "the loss is nan at step 12" if broken else None
            cells.append(cell(name, rate, seed, *numbers, fault=fault, metric=metric, **place))

    for rate in grid:
        add("ste", rate, 1.0, 0.0)
        for name, factor in factors.items():
            add("ste" if name == "ste (again)" else name, rate, factor, gains[name])
            if name == "ste (again)":
                for each in cells[-len(seeds) :]:
                    each["estimator"] = name
    for name, factor in factors.items():
        add("ste", 0.01, factor, 0.0, role="adjusted", of=name)
        add("ste", 0.03, factor, 0.0, role="adjusted", of=name)
    refused = names[6] if len(names) > 6 else None
    return content(cells, {name: None if name == refused else factor for name, factor in factors.items()}, grid, seeds,
                   metric, **other)  # fmt: skip


def write(folder: Path, study: Mapping[str, Any]) -> Path:
    """Writes ``tune.json`` into a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "tune.json").write_text(json.dumps(study))
    return folder

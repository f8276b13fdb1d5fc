"""Reads an atlas and labels each estimator under each optimizer, with confidence intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qat_ste.report.files import read_content
from qat_ste.report.seeds import LEAST_SEEDS, Estimate, interval_of_mean, no_interval

SCHEMA = 1
# Largest distance in per cent of learning rate that counts as near, and smallest order that counts as getting nearer:
# with an order of 1/4 the error falls 1.5 times where the learning rate falls 5 times.
NEAR, FALLING = 5.0, 0.25
LITTLE = 0.5  # accuracy, and share of the best optimizer's accuracy, below which a network has learned little
SAME, DISGUISE, NOT = "the same run", "in disguise", "not"
NEAR_ONLY, NEARER_ONLY = "near only", "getting nearer only"
UNDECIDED, NO_NUMBERS = "undecided", "no numbers"
LABELS = (SAME, DISGUISE, NEAR_ONLY, NEARER_ONLY, NOT, UNDECIDED, NO_NUMBERS)  # in the order of pages
ADJUSTMENTS = ("remap", "keep", "exact", "none")


def mean(values: Iterable[float | None]) -> Estimate | None:
    """Arithmetic mean of the values that are not None, with Student's interval; None without values."""
    numbers = [value for value in values if value is not None]
    if len(numbers) >= LEAST_SEEDS:
        return Estimate(*interval_of_mean(numbers), len(numbers))
    return Estimate(math.fsum(numbers) / len(numbers), None, None, len(numbers)) if numbers else None


def geometric_mean(values: Iterable[float | None]) -> Estimate | None:
    """Geometric mean of the values that are not None, with Student's interval on logarithms; None without values.

    There is no interval if some values are 0 and others are not.
    """
    numbers = [value for value in values if value is not None]
    if 0 in numbers:
        return mean(numbers) if not any(numbers) else Estimate(0.0, None, None, len(numbers))
    logarithm = mean(math.log(number) for number in numbers)
    if logarithm is None:
        return None
    low, high = (None if end is None else math.exp(min(end, 700.0)) for end in (logarithm.low, logarithm.high))
    return Estimate(math.exp(logarithm.mean), low, high, logarithm.n)


@dataclass(frozen=True)
class Combination:
    """One estimator under one optimizer.

    ``cells`` holds the cells of the larger learning rate η, then those of the smaller one, each sorted by seed;
    ``smaller`` is the ratio of the two learning rates.
    """

    estimator: str
    optimizer: str
    cells: tuple[tuple[Mapping[str, Any], ...], ...]
    smaller: float

    def over_seeds(self, key: str, lr: int = 1) -> Estimate | None:
        """Geometric mean of a positive number of the cells at η (``lr=0``) or at the smaller learning rate (1)."""
        return geometric_mean(cell.get(key) for cell in self.cells[lr])

    def accuracy(self) -> Estimate | None:
        """Test accuracy of the reference at the smaller learning rate, from 0 to 1."""
        return mean(cell.get("test_accuracy") for cell in self.cells[1])

    @cached_property
    def distance(self) -> Estimate | None:
        """Change of learning rate, in per cent, that moves the weights as far as replacing the estimator does."""
        return self.over_seeds("equivalent_lr_jitter")

    @cached_property
    def order(self) -> Estimate | None:
        """Order of the STE's error e in the learning rate η: log(e(η)/e(η/s))/log s; seeds with e = 0 do not count."""
        errors = zip(*([cell.get("ste") for cell in cells] for cells in self.cells), strict=True)
        return mean(math.log(large / small) / math.log(self.smaller) for large, small in errors if large and small)

    @property
    def faults(self) -> list[str]:
        """Why there are no numbers, by seed and learning rate."""
        faulty = (cell for cells in self.cells for cell in cells if cell["fault"])
        return [f"seed {cell['seed']}, lr {cell['lr']:g}: {cell['fault']}" for cell in faulty]

    @property
    def near(self) -> bool | None:
        """Whether the distance is at most ``NEAR``; None if undecided."""
        return None if self.distance is None else self.distance.at_most(NEAR)

    @property
    def falling(self) -> bool | None:
        """Whether the order is at least ``FALLING``; None if undecided."""
        return None if self.order is None else self.order.at_least(FALLING)

    @property
    def label(self) -> str:
        """One of the labels above; ``rule`` explains them."""
        errors = [cell["ste"] for cells in self.cells for cell in cells]
        if self.faults or None in errors:
            return NO_NUMBERS
        if not any(errors):
            return SAME
        if self.near is None or self.falling is None:
            return UNDECIDED
        if self.near:
            return DISGUISE if self.falling else NEAR_ONLY
        return NEARER_ONLY if self.falling else NOT

    def segments(self, lr: int = 1) -> tuple[str, Estimate] | None:
        """Outcome and error of the STE in segments, in units of ``jitter``'s, at η (0) or at the smaller rate (1).

        Of one seed the interval is that over its segments, of several that over seeds; seeds that do not agree leave
        the outcome undecided. None without segments.
        """
        cells = [cell for cell in self.cells[lr] if cell.get("segment_outcome") is not None]
        if not cells:
            return None
        outcomes = {cell["segment_outcome"] for cell in cells}
        ratio = geometric_mean(cell["segment_ste_over_jitter"] for cell in cells)
        if ratio is None:
            return None
        if len(cells) == 1:
            low, high = (cells[0].get(f"segment_ste_over_jitter_{end}") for end in ("low", "high"))
            ratio = Estimate(ratio.mean, low, high, 1)
        return (outcomes.pop() if len(outcomes) == 1 else UNDECIDED), ratio

    @property
    def doubt(self) -> str:
        """Why the label is ``UNDECIDED``; empty for other labels."""
        if self.label != UNDECIDED:
            return ""
        reasons = [
            _doubt(name, estimate, bound)
            for name, estimate, bound, holds in (
                ("distance", self.distance, f"{NEAR:g} %", self.near),
                ("order", self.order, f"{FALLING:g}", self.falling),
            )
            if holds is None
        ]
        return " and ".join(dict.fromkeys(reasons))

    def common(self, key: str) -> Any:
        """A value that all cells share: reason, adjustment, α, L₊/L₋; None if no cell has it."""
        return next((cell[key] for cells in self.cells for cell in cells if cell.get(key) is not None), None)


def _doubt(name: str, estimate: Estimate | None, bound: str) -> str:
    if estimate is not None and estimate.low is not None:
        return f"the interval of the {name} contains {bound}"
    if estimate is not None and estimate.n < LEAST_SEEDS:
        return no_interval(estimate.n)
    return f"no interval of the {name}: some errors are 0"


@dataclass(frozen=True)
class Atlas:
    """All combinations of a grid; optimizers are sorted by their adjustments, then as given."""

    content: Mapping[str, Any]
    estimators: tuple[str, ...]
    optimizers: tuple[str, ...]
    combinations: Mapping[tuple[str, str], Combination]

    def adjustment(self, optimizer: str) -> str:
        return str(self._common(optimizer, "equivalence") or "none")

    def reason(self, optimizer: str) -> str:
        return str(self._common(optimizer, "equivalence_reason") or "")

    def groups(self) -> Iterator[tuple[str, list[str]]]:
        """Optimizers by adjustment."""
        for adjustment in ADJUSTMENTS:
            if names := [name for name in self.optimizers if self.adjustment(name) == adjustment]:
                yield adjustment, names

    def covered(self) -> list[str]:
        """The estimators that the theorem covers."""
        return [name for name in self.estimators if not self.refusal(name)]

    def by_label(self, optimizer: str) -> dict[str, list[Combination]]:
        """The combinations of an optimizer by label, in the order of ``LABELS``."""
        combinations = [self.combinations[estimator, optimizer] for estimator in self.estimators]
        return {label: [c for c in combinations if c.label == label] for label in LABELS}

    def refusal(self, estimator: str) -> str | None:
        """Why the theorem does not cover the estimator; None if it does."""
        reasons = (self.combinations[estimator, optimizer].common("refused") for optimizer in self.optimizers)
        return next((reason for reason in reasons if reason), None)

    def accuracy(self, optimizer: str) -> Estimate | None:
        """Test accuracy of the references at the smaller learning rate: over estimators, then over seeds."""
        by_seed: dict[int, list[float]] = {}
        for estimator in self.estimators:
            for cell in self.combinations[estimator, optimizer].cells[1]:
                if cell.get("test_accuracy") is not None:
                    by_seed.setdefault(cell["seed"], []).append(cell["test_accuracy"])
        return mean(math.fsum(values) / len(values) for values in by_seed.values())

    def learned_little(self) -> dict[str, str]:
        """A warning for each optimizer with which the network learned little."""
        estimates = {name: self.accuracy(name) for name in self.optimizers}
        accuracies = {name: estimate.mean for name, estimate in estimates.items() if estimate is not None}
        best = max(accuracies, key=lambda name: accuracies[name], default="")
        return {
            name: f"learned little: {100 * accuracy:.1f} % of test images are right"
            + (f", {100 * accuracies[best]:.1f} % under {best}" if name != best else "")
            for name, accuracy in accuracies.items()
            if accuracies[best] < LITTLE or accuracy < LITTLE * accuracies[best]
        }

    def _common(self, optimizer: str, key: str) -> Any:
        """A value that the optimizer's cells share, if possible from an estimator that the theorem covers."""
        combinations = sorted(
            (self.combinations[estimator, optimizer] for estimator in self.estimators),
            key=lambda combination: bool(combination.common("refused")),
        )
        return next((value for c in combinations if (value := c.common(key)) is not None), None)


def read_atlas(path: Path) -> Atlas:
    """Reads ``atlas.json``.

    Raises:
        OSError, ValueError, KeyError: the file is unreadable, or qat-atlas did not write it.
    """
    content = read_content(path, SCHEMA)
    grouped: dict[tuple[str, str], list[list[Any]]] = {}
    for cell in content["cells"]:
        by_lr = grouped.setdefault((cell["estimator"], cell["optimizer"]), [[], []])
        by_lr[content["optimizers"][cell["optimizer"]].index(cell["lr"])].append(cell)
    combinations = {
        key: Combination(
            *key, tuple(tuple(sorted(cells, key=lambda cell: cell["seed"])) for cells in by_lr), content["smaller"]
        )
        for key, by_lr in grouped.items()
    }
    atlas = Atlas(content, tuple(content["estimators"]), tuple(content["optimizers"]), combinations)
    ordered = [name for _, names in atlas.groups() for name in names]
    return Atlas(content, atlas.estimators, tuple(ordered), combinations)


def rule(smaller: float) -> str:
    """Explains ``Combination.label``."""
    return (
        f"An estimator counts as disguised if replacing it moves the weights no more than a {NEAR:g} % change of the "
        "learning rate, and less as the learning rate falls. Two tests, each on a 95 % confidence interval over seeds "
        f"(Student's t; the distance on its logarithm). Near: at the smaller learning rate, η/{smaller:g}, the whole "
        f"interval of the distance is at most {NEAR:g} %. Getting nearer: the whole interval of the order of the error "
        f"in η is at least {FALLING:g}, so the error falls at least {smaller**FALLING:.2g} times from η to "
        f"η/{smaller:g}. In disguise: both tests hold. Near only, getting nearer only: one test holds, and the whole "
        "interval of the other lies on the other side of its bound. Not: so do both intervals. Undecided: an interval "
        f"contains its bound, or there are fewer than {LEAST_SEEDS} seeds. The same run: every error is exactly 0. The "
        "intervals are not corrected for the number of tests."
    )

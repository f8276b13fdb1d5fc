"""Compares every estimator at its best learning rate with the STE: at its own best rate, at that rate, and adjusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qat_ste.report.seeds import CONFIDENCE, LEAST_SEEDS, Estimate
from qat_ste.report.tune.answers import ANSWERS, INNER, Answers, Array, Sample, answers, summarize
from qat_ste.report.tune.study import STE, Cells, Curve, Study, complete

SINGLE = 2.0**-24  # an α below: single precision rounds the STE's steps away at weights that the estimator moves
LITTLE = 0.5  # accuracy below which a network has learned little


@dataclass(frozen=True)
class Difference:
    """Mean of differences paired by seed, with confidence intervals; numbers are None without such cells.

    Attributes:
        mean: with its 95 % interval.
        inner: with its 90 % interval.
        equivalent: whether the 90 % interval lies within the margin.
        diverged: number of seeds with a fault.
    """

    mean: Estimate | None
    inner: Estimate | None
    equivalent: bool
    diverged: int = 0


@dataclass(frozen=True)
class Row:
    """What a study says about one estimator.

    Attributes:
        best: its best learning rate.
        counterpart: the rate of the STE that corresponds to it: α times the best rate.
        distance: from the STE's best rate to ``counterpart``, in steps of the grid; None for an α below ``SINGLE``.
        test: its test metric at the best rate.
        difference: to the STE, each at its own best rate; positive where the estimator is better.
        answer: one of ``ANSWERS``.
        p: two-sided p value, corrected by Holm's method.
        seeds: that would decide, if undecided.
        swap: test metric that the STE loses at the estimator's best rate, compared with its own best rate.
        adjusted: gain of the adjusted STE over the estimator; None unless the optimizer remaps.
    """

    label: str
    best: float | None
    counterpart: float | None
    distance: float | None
    test: Estimate | None
    difference: Difference
    answer: str
    p: float | None
    seeds: int | None
    swap: Difference
    adjusted: Difference | None


class Comparison:
    """A row for each estimator of a study, and their counts."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.ste = study.curves[STE]

    @cached_property
    def margin(self) -> float | None:
        """Largest difference of the test metric that does not matter; of a loss, None if the STE has no best rate."""
        margin = float(self.study.content["margin"])
        if self.study.metric == "accuracy":
            return margin
        values = _at(self.ste, self.ste.best)
        return margin * abs(statistics.fmean(values)) if values else None

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        study = self.study
        best = [study.curves[label].best for label in study.labels]
        tests = [_at(study.curves[label], rate) for label, rate in zip(study.labels, best, strict=True)]
        differences = np.stack([self._paired(values, _at(self.ste, self.ste.best)) for values in tests])
        result = answers(differences, self._bound)
        return tuple(self._row(n, label, result) for n, label in enumerate(study.labels))

    def counts(self) -> dict[str, list[str]]:
        """The estimators by answer, in the order of ``ANSWERS``; answers that no estimator has are left out."""
        by_answer = {answer: [row.label for row in self.rows if row.answer == answer] for answer in ANSWERS}
        return {answer: labels for answer, labels in by_answer.items() if labels}

    def distances(self) -> dict[str, float]:
        """Distances of the best rates from the STE's, in steps of the grid, where both exist."""
        return {row.label: row.distance for row in self.rows if row.distance is not None}

    def adjusted(self) -> list[Row]:
        """The rows whose counterpart was trained with numbers."""
        return [row for row in self.rows if row.adjusted is not None and row.adjusted.mean is not None]

    def ste_test(self) -> Estimate | None:
        """Test metric of the STE at its best rate."""
        return _estimate(_at(self.ste, self.ste.best))

    def best_accuracy(self) -> float | None:
        """The largest mean test accuracy of any estimator at its best rate; None if the metric is a loss."""
        estimates = [self.ste_test(), *(row.test for row in self.rows)]
        means = [estimate.mean for estimate in estimates if estimate is not None]
        return max(means, default=None) if self.study.metric == "accuracy" else None

    @property
    def _bound(self) -> float:
        return math.nan if self.margin is None else self.margin

    def _row(self, n: int, label: str, result: Answers) -> Row:
        study, curve, ste = self.study, self.study.curves[label], self.ste.best
        best, answer, seeds = curve.best, str(result.answer[n]), float(result.seeds[n])
        counterpart = None if best is None else best * study.factor(label)
        distance = None
        if counterpart is not None and ste is not None and study.factor(label) >= SINGLE:
            distance = math.log(counterpart / ste) / math.log(grid_factor(study.grid))
        return Row(
            label, best, counterpart, distance, _estimate(_at(curve, best)),
            self._difference(Sample(result.sample.mean[n], result.sample.sd[n], result.sample.n)),
            answer,
            None if math.isnan(result.p[n]) else float(result.p[n]),
            None if math.isnan(seeds) else int(seeds),
            self._swap(best),
            self._adjusted(label) if study.remapped(label) else None,
        )  # fmt: skip

    def _swap(self, rate: float | None) -> Difference:
        cells = {} if rate is None else self.study.swapped_cells(rate)
        differences = self._paired(_at(self.ste, self.ste.best), self._tests(cells))
        return self._difference(summarize(differences), len(self.study.faults(cells)))

    def _adjusted(self, label: str) -> Difference:
        curve, cells = self.study.curves[label], self.study.adjusted_cells(label)
        differences = self._paired(self._tests(cells), _at(curve, curve.best))
        return self._difference(summarize(differences), len(self.study.faults(cells)))

    def _tests(self, cells: Cells) -> list[float]:
        """Test metrics of the cells by seed; empty if some are missing or have a fault."""
        return [] if self.study.faults(cells) else complete(self.study.values(cells, "test"))

    def _paired(self, values: Sequence[float], others: Sequence[float]) -> Array:
        """How much better the values are than the others, by seed; NaN if some are missing."""
        if not values or not others:
            return np.full(len(self.study.seeds), math.nan)
        return self.study.sign * (np.array(values) - np.array(others))

    def _difference(self, sample: Sample, diverged: int = 0) -> Difference:
        if np.isnan(sample.mean):
            return Difference(None, None, False, diverged)
        outer, inner = (_interval(sample, confidence) for confidence in (CONFIDENCE, INNER))
        return Difference(outer, inner, bool(sample.within(self._bound)), diverged)


def grid_factor(grid: Sequence[float]) -> float:
    """Geometric mean of the ratios of neighbouring rates."""
    return float((grid[-1] / grid[0]) ** (1 / (len(grid) - 1)))


def _at(curve: Curve, rate: float | None) -> list[float]:
    """Test metrics at a rate, by seed."""
    return [] if rate is None else complete(curve.test[rate])


def _estimate(values: Sequence[float]) -> Estimate | None:
    return _interval(summarize(np.array(values)), CONFIDENCE) if values else None


def _interval(sample: Sample, confidence: float) -> Estimate:
    mean, half_width = float(sample.mean), float(sample.half_width(confidence))
    if sample.n < LEAST_SEEDS:
        return Estimate(mean, None, None, sample.n)
    return Estimate(mean, mean - half_width, mean + half_width, sample.n)

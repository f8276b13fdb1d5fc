"""Says of each estimator whether it is equivalent to the STE, better or worse, from differences paired by seed.

Every function takes arrays, so that the same code answers one study and simulates thousands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qat_ste.report.seeds import CONFIDENCE, LEAST_SEEDS

ALPHA = 1 - CONFIDENCE  # level of the tests
INNER = 1 - 2 * ALPHA  # confidence of the interval that two one-sided tests at level ALPHA correspond to
POWER = 0.8
MOST_SEEDS = 10_000
EQUIVALENT, BETTER, WORSE = "equivalent", "better", "worse"
UNDECIDED, NO_NUMBERS = "undecided", "no numbers"
ANSWERS = (EQUIVALENT, BETTER, WORSE, UNDECIDED, NO_NUMBERS)  # in the order of pages
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """Mean and sample standard deviation over ``n`` seeds; NaN where a difference is NaN."""

    mean: Array
    sd: Array
    n: int

    def half_width(self, confidence: float) -> Array:
        """Half the width of Student's confidence interval of the mean; NaN with fewer than ``LEAST_SEEDS`` seeds."""
        if self.n < LEAST_SEEDS:
            return np.full_like(self.mean, math.nan)
        return _quantile(self.n, (1 + confidence) / 2) * self.sd / math.sqrt(self.n)

    def within(self, margin: float | Array) -> Array:
        """Whether two one-sided t-tests at level ``ALPHA`` show that the mean lies within ±``margin``."""
        return np.abs(self.mean) + self.half_width(INNER) <= margin

    def p_values(self) -> Array:
        """Two-sided p values of Student's t-test that the mean is 0; NaN with fewer than ``LEAST_SEEDS`` seeds."""
        from scipy.special import stdtr  # scipy.stats takes a second to import

        if self.n < LEAST_SEEDS:
            return np.full_like(self.mean, math.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * stdtr(self.n - 1, -np.abs(self.mean) * math.sqrt(self.n) / self.sd)
        return np.where(self.sd == 0, np.where(self.mean == 0, 1.0, 0.0), p)


@dataclass(frozen=True)
class Answers:
    """Answers of shape (..., estimators).

    Attributes:
        sample: mean and standard deviation of the differences.
        p: two-sided p values, corrected by Holm's method.
        answer: one of ``ANSWERS``.
        seeds: that would decide, see ``seeds_to_decide``; NaN unless undecided.
    """

    sample: Sample
    p: Array
    answer: Array
    seeds: Array


def answers(differences: Array, margin: float | Array) -> Answers:
    """Answers for the estimators of one study, or of several.

    Args:
        differences: of the test metric to the STE's, positive where the estimator is better; shape (..., estimators,
            seeds). NaN: no numbers.
        margin: largest difference that does not matter; shape (..., 1) or a number.
    """
    sample = summarize(differences)
    p = holm(sample.p_values())
    with np.errstate(invalid="ignore"):
        certain = p <= ALPHA
    conditions = [np.isnan(sample.mean), sample.within(margin), certain & (sample.mean > 0), certain]
    answer = np.select(conditions, [NO_NUMBERS, EQUIVALENT, BETTER, WORSE], UNDECIDED)
    seeds = np.full(answer.shape, math.nan)
    if sample.n >= LEAST_SEEDS:
        needed = seeds_to_decide(sample.mean, sample.sd, margin, family=differences.shape[-2])
        seeds = np.where(answer == UNDECIDED, needed, math.nan)
    return Answers(sample, p, answer, seeds)


def summarize(values: Array) -> Sample:
    """Mean and standard deviation over the last axis; equal values have a standard deviation of exactly 0."""
    n = values.shape[-1]
    if n == 0:
        nothing = np.full(values.shape[:-1], math.nan)
        return Sample(nothing, nothing, 0)
    equal = np.ptp(values, axis=-1) == 0
    sd = np.std(values, axis=-1, ddof=1) if n > 1 else np.full(values.shape[:-1], math.nan)
    return Sample(np.where(equal, values[..., 0], np.mean(values, axis=-1)), np.where(equal & (n > 1), 0.0, sd), n)


def holm(p: Array) -> Array:
    """P values corrected by Holm's step-down method over the last axis; a NaN stays one, but counts in the family."""
    family = p.shape[-1]
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, axis=-1)
    steps = np.take_along_axis(filled, order, axis=-1) * np.arange(family, 0, -1)
    corrected = np.empty_like(filled)
    np.put_along_axis(corrected, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0), axis=-1)
    return np.where(np.isnan(p), math.nan, corrected)


def seeds_to_decide(mean: Array, sd: Array, margin: float | Array, family: int) -> Array:
    """Number of seeds that decides with a probability of about ``POWER`` if mean and deviation are the true ones.

    The smaller of the numbers for a difference, at Bonferroni's level, which is the strictest step of Holm's method,
    and for equivalence. ``MOST_SEEDS + 1`` stands for more than ``MOST_SEEDS``.

    Args:
        mean: of the differences.
        sd: their standard deviation.
        margin: of equivalence.
        family: number of estimators.
    """
    difference, equivalence = _half_widths(family)
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = [
            LEAST_SEEDS + len(half_widths) - np.searchsorted(half_widths[::-1], reach / sd, "right")
            for half_widths, reach in ((difference, np.abs(mean)), (equivalence, margin - np.abs(mean)))
        ]
    return np.minimum(*numbers)


@cache
def _half_widths(family: int) -> tuple[Array, Array]:
    """What a mean needs for a difference, and what it must leave to the margin, in standard deviations, by seeds."""
    n = np.arange(LEAST_SEEDS, MOST_SEEDS + 1)
    difference = _quantile(n, 1 - ALPHA / (2 * family)) + _quantile(n, POWER)
    equivalence = _quantile(n, 1 - ALPHA) + _quantile(n, (1 + POWER) / 2)
    return difference / np.sqrt(n), equivalence / np.sqrt(n)


def _quantile(n: int | Array, probability: float) -> Array:
    """Quantile of Student's t with n - 1 degrees of freedom."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(n - 1, probability))

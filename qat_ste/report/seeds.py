"""Mean, standard deviation and confidence interval over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
LEAST_SEEDS = 3  # for the same spread, the interval of two seeds is 3.6 times as wide as that of three


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for n = 1) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Estimate:
    """Mean over ``n`` seeds with its 95 % confidence interval; ``low`` and ``high`` are None without an interval."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def at_most(self, bound: float) -> bool | None:
        """Whether the interval lies at or below the bound; None if it contains the bound or does not exist."""
        if self.low is None or self.high is None or self.low <= bound < self.high:
            return None
        return self.high <= bound

    def at_least(self, bound: float) -> bool | None:
        """Whether the interval lies at or above the bound; None if it contains the bound or does not exist."""
        if self.low is None or self.high is None or self.low < bound <= self.high:
            return None
        return self.low >= bound


def summarize(values: Iterable[float | None]) -> Summary | None:
    """Summarizes the values that are not None; returns None if there are none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    # The statistics module computes exactly: equal numbers have a standard deviation of exactly 0.
    return Summary(statistics.mean(numbers), statistics.stdev(numbers) if numbers[1:] else None, len(numbers))


def interval_of_mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean and both ends of Student's 95 % confidence interval of at least two values."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    summary = summarize(values)
    assert summary is not None and summary.sd is not None
    half_width = float(stdtrit(summary.n - 1, (1 + CONFIDENCE) / 2)) * summary.sd / math.sqrt(summary.n)
    return summary.mean, summary.mean - half_width, summary.mean + half_width


def no_interval(seeds: int) -> str:
    """States that there are too few seeds for an interval."""
    return f"no interval: {seeds} {'seed' if seeds == 1 else 'seeds'}"

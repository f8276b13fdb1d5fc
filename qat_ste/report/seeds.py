"""Mean, standard deviation and confidence interval over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for n = 1) of n values."""

    mean: float
    sd: float | None
    n: int


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

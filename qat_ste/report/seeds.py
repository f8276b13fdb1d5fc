"""Mean and spread over seeds, and the interval in which the mean lies."""

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
    """Of those that are not None; None where there are none."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    # The standard library's are exact: equal numbers have that mean, and deviate by 0.
    return Summary(statistics.mean(numbers), statistics.stdev(numbers) if numbers[1:] else None, len(numbers))


def interval_of_mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and both ends of Student's 95 % confidence interval of at least two values."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    summary = summarize(values)
    assert summary is not None and summary.sd is not None
    reach = float(stdtrit(summary.n - 1, (1 + CONFIDENCE) / 2)) * summary.sd / math.sqrt(summary.n)
    return summary.mean, summary.mean - reach, summary.mean + reach

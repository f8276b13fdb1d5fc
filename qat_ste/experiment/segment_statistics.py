"""Statistics of segments: errors with intervals, their growth with the length, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
DRAWS = 2000
FEWEST = 8  # segments, and blocks, of which an interval is made
METHOD = (
    "95 % interval: local block bootstrap (Paparoditis and Politis 2002) of the logarithm over segments, Student's t"
)


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval, which are None where there are too few segments."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.2g}" if self.low is None else f"{self.value:.2g} ({self.low:.2g} to {self.high:.2g})"


@dataclass(frozen=True)
class Sums:
    """Distances and paths of one counterpart by segment, over all weights; both of length n."""

    distance: np.ndarray
    path: np.ndarray

    @property
    def ratio(self) -> float | None:
        """Σ distances / Σ paths; None without a path."""
        path = float(self.path.sum())
        return float(self.distance.sum()) / path if path else None

    @property
    def residuals(self) -> np.ndarray:
        """Distance of each segment less its path times the ratio of the segments around it, within ``window``."""
        width = 2 * window(len(self.path)) + 1
        distance, path = (_moving_sum(values, width) for values in (self.distance, self.path))
        return self.distance - np.divide(distance, path, out=np.zeros_like(path), where=path > 0) * self.path

    @property
    def autocorrelation(self) -> float | None:
        """Of the residuals of neighbouring segments; None of fewer than three segments, or without a residual."""
        residuals = self.residuals
        square = float(residuals @ residuals)
        return float(residuals[1:] @ residuals[:-1]) / square if len(residuals) > 2 and square > 0 else None


def window(n: int) -> int:
    """Segments on either side that count as near: errors change with the learning rate over a run."""
    return max(3, n // 10)


def _moving_sum(values: np.ndarray, width: int) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    return total[np.minimum(places + width // 2 + 1, len(values))] - total[np.maximum(places - width // 2, 0)]


def block_length(sums: Sums) -> int:
    """Segments of a block: the optimum for an AR(1) process (Carlstein 1986), at least 1, at most n / FEWEST."""
    n, rho = len(sums.distance), sums.autocorrelation or 0.0
    rho = min(max(rho, 0.0), 0.95)
    optimum = (2 * rho / (1 - rho**2)) ** (2 / 3) * n ** (1 / 3)
    return max(1, min(math.ceil(optimum), n // FEWEST))


def ratio_interval(above: Sums, below: Sums | None = None) -> Interval | None:
    """The error of one counterpart, or over that of another, in the same segments; None where it is 0 or undefined.

    Each block of neighbouring segments is replaced by one that starts within ``window`` of it. The standard error of
    the logarithm, which grows with the autocorrelation of the residuals, is widened by Student's t, since the blocks
    are few.
    """
    value = above.ratio
    if value is not None and below is not None:
        value = value / below.ratio if below.ratio else None
    if not value:
        return None
    n = len(above.distance)
    length = max(block_length(each) for each in (above, below) if each is not None)
    blocks = n // length
    if n < FEWEST or blocks < FEWEST:
        return Interval(value)
    generator = np.random.default_rng(0)
    reach = max(window(n), length)
    starts = np.arange(0, n, length) + generator.integers(-reach, reach + 1, (DRAWS, math.ceil(n / length)))
    drawn = (starts.clip(0, n - length)[..., None] + np.arange(length)).reshape(DRAWS, -1)[:, :n]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(above.distance[drawn].sum(1) / above.path[drawn].sum(1))
        if below is not None:
            logs = logs - np.log(below.distance[drawn].sum(1) / below.path[drawn].sum(1))
    logs = logs[np.isfinite(logs)]
    if len(logs) < DRAWS / 2:
        return Interval(value)
    # Differences from the surroundings miss slow fluctuations; this factor was found on AR(1) processes, see the tests.
    widened = 1.1 + max([0.0, *(each.autocorrelation or 0.0 for each in (above, below) if each is not None)])
    half = widened * _student(blocks - 1) * float(logs.std(ddof=1))
    return Interval(value, value * math.exp(-half), value * math.exp(half))


def growth(errors: Mapping[int, Interval]) -> Interval | None:
    """The exponent p of error ~ K^p, by least squares on logarithms; None of fewer than two lengths."""
    lengths = sorted(errors)
    if len(lengths) < 2:
        return None
    x = np.log(lengths) - np.mean(np.log(lengths))
    weights = x / (x @ x)
    value = float(weights @ np.log([errors[length].value for length in lengths]))
    widths = [_log_error(errors[length]) for length in lengths]
    if None in widths:
        return Interval(value)
    half = NORMAL * math.sqrt(sum((w * s) ** 2 for w, s in zip(weights, widths, strict=True)))
    return Interval(value, value - half, value + half)


def _log_error(interval: Interval) -> float | None:
    if interval.low is None or interval.high is None:
        return None
    return math.log(interval.high / interval.low) / 2 / NORMAL


def _student(degrees: int) -> float:
    """The quantile of Student's t that takes the place of ``NORMAL``."""
    from scipy import stats  # takes a third of a second, and few runs need it

    return float(stats.t.ppf((1 + LEVEL) / 2, degrees))

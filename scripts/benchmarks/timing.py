"""Contestants measured in turn in one process, so that a slow moment of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Contestant = Callable[[], object]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """A measured figure: median and quartiles over rounds.

    Args:
        setting: of what network, batch, cohort.
        unit: ``×`` and ``%`` for ratios (both kept as ratios), ``s``, ``B``.
        value: None where it could not be measured; ``note`` says why.
        bar: what it must not exceed.
        x: place on the horizontal axis of a figure.
    """

    setting: str
    what: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    x: float | None = None
    note: str = ""


class Stopwatch:
    """Adds up the seconds spent in named phases."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds by phase since they were last taken."""
        taken, self._seconds = self._seconds, defaultdict(float)
        return taken


def interleaved(contestants: Mapping[str, Contestant], steps: int, rounds: int, watch: Stopwatch) -> Seconds:
    """Seconds a step, one number a round, of each contestant and of each phase that they give ``watch``.

    A round is ``steps`` steps of each contestant, every other round in reverse order; the first one warms up.
    """
    seconds: Seconds = defaultdict(list)
    order = list(contestants)
    for round_ in range(rounds + 1):
        for name in order:
            with watch(name):
                for _ in range(steps):
                    contestants[name]()
        taken = watch.take()
        if round_:
            for phase, value in taken.items():
                seconds[phase].append(value / steps)
        order.reverse()
    return dict(seconds)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles, in the order of ``Figure``."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return statistics.median(ordered), ordered[quarter], ordered[-1 - quarter]


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of the ratio within each round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def total(*phases: Sequence[float]) -> list[float]:
    """Their sum, round by round."""
    return [sum(values) for values in zip(*phases, strict=True)]


def difference(more: Sequence[float], less: Sequence[float]) -> list[float]:
    """Of two phases, round by round."""
    return [a - b for a, b in zip(more, less, strict=True)]

"""Time contestants in turn in one process, so that a slow moment of the machine affects all of them."""

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
        setting: network, batch and cohort.
        unit: ``×`` and ``%`` for ratios (both kept as ratios), ``s``, ``B``.
        value: None where it could not be measured; ``note`` says why.
        bar: target that it must not exceed.
        x: value on the horizontal axis of a plot.
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
    """Sums the seconds spent in named phases."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Returns the seconds by phase since the last call."""
        taken, self._seconds = self._seconds, defaultdict(float)
        return taken


def interleaved(
    contestants: Mapping[str, Contestant],
    steps: int,
    rounds: int,
    watch: Stopwatch,
    wait: Callable[[], object] = lambda: None,
) -> Seconds:
    """Returns seconds per step, one number per round, of each contestant and each phase timed by ``watch``.

    A round is ``steps`` steps of each contestant, in reverse order every other round. An extra first round warms up.
    ``wait`` is called after each contestant's steps, within their time; on a GPU it waits for them.
    """
    seconds: Seconds = defaultdict(list)
    order = list(contestants)
    for round_ in range(rounds + 1):
        for name in order:
            with watch(name):
                for _ in range(steps):
                    contestants[name]()
                wait()
        taken = watch.take()
        if round_:
            for phase, value in taken.items():
                seconds[phase].append(value / steps)
        order.reverse()
    return dict(seconds)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median and quartiles, in the order of ``Figure``."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return statistics.median(ordered), ordered[quarter], ordered[-1 - quarter]


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Returns median and quartiles of the ratio within each round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def total(*phases: Sequence[float]) -> list[float]:
    """Returns the sum of the phases, round by round."""
    return [sum(values) for values in zip(*phases, strict=True)]


def difference(more: Sequence[float], less: Sequence[float]) -> list[float]:
    """Returns the difference of two phases, round by round."""
    return [a - b for a, b in zip(more, less, strict=True)]

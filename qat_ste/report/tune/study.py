"""Reads a tuning study, finished or not, and chooses the learning rate of each estimator and of the STE."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qat_ste.report.files import read_content

SCHEMA = 1
STE = "ste"
METRICS = ("accuracy", "loss")
DIGITS = 12  # of a mean that is compared: means of the same numbers in another order differ in the last digits
Cells = Mapping[int, Mapping[str, Any]]  # by seed


@dataclass(frozen=True)
class Curve:
    """Cells of one estimator over learning rates, and the choice of its best rate.

    Attributes:
        cells: by rate, ascending, then by seed; those of role ``grid`` alone.
        study: that they belong to.
    """

    cells: Mapping[float, Cells]
    study: Study

    @property
    def rates(self) -> tuple[float, ...]:
        """The rates with cells, ascending."""
        return tuple(self.cells)

    @property
    def added(self) -> int:
        """How many rates were added to the study's grid."""
        return len(set(self.rates) - set(self.study.grid))

    @cached_property
    def validation(self) -> dict[float, tuple[float | None, ...]]:
        """The validation metric by rate, for each seed of the study; None where it is missing."""
        return {rate: self.study.values(cells, "validation") for rate, cells in self.cells.items()}

    @cached_property
    def test(self) -> dict[float, tuple[float | None, ...]]:
        """The test metric by rate, for each seed of the study; None where it is missing."""
        return {rate: self.study.values(cells, "test") for rate, cells in self.cells.items()}

    @cached_property
    def faults(self) -> dict[float, dict[int, str]]:
        """Why there are no numbers, by rate and seed; rates without a fault are left out."""
        by_rate = {rate: self.study.faults(cells) for rate, cells in self.cells.items()}
        return {rate: faults for rate, faults in by_rate.items() if faults}

    @cached_property
    def means(self) -> dict[float, float]:
        """Mean validation metric of the eligible rates: those at which every seed has its numbers and no fault."""
        return {
            rate: statistics.fmean(complete(values))
            for rate, values in self.validation.items()
            if rate not in self.faults and complete(values) and complete(self.test[rate])
        }

    @cached_property
    def best(self) -> float | None:
        """The eligible rate with the best mean validation metric, of equal ones the smallest; None without any."""
        sign = self.study.sign
        return max(self.means, key=lambda rate: (round(sign * self.means[rate], DIGITS), -rate), default=None)

    @property
    def planned(self) -> list[float]:
        """The grid's rates and those added so far, ascending."""
        return sorted({*self.study.grid, *self.rates})

    @property
    def unfinished(self) -> list[float]:
        """The planned rates that have neither cells of all seeds nor a fault, ascending."""
        seeds = set(self.study.seeds)
        return [rate for rate in self.planned if rate not in self.faults and not seeds <= set(self.cells.get(rate, ()))]

    @property
    def settled(self) -> bool:
        """Whether the best rate is final: nothing is missing, and no rate is to be added."""
        return not self.unfinished and self.next_rate is None

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest one."""
        return self.best in (self.planned[0], self.planned[-1])

    @property
    def next_rate(self) -> float | None:
        """The rate to train beyond the grid: an added one that lacks cells, otherwise a new one.

        A new one lies beyond the best rate if that is at the edge, at the ratio of the two outermost rates. None if the
        best rate is inside, no rate is eligible, cells of the grid are missing, or no more rates may be added.
        """
        if self.unfinished:
            return next((rate for rate in self.unfinished if rate not in self.study.grid), None)
        if not self.at_edge or self.added >= self.study.extensions:
            return None
        rates = self.planned
        edge, neighbour = rates[:2] if self.best == rates[0] else rates[:-3:-1]
        return edge**2 / neighbour


@dataclass(frozen=True)
class Study:
    """A tuning study, finished or not.

    Args:
        content: of ``tune.json``.
    """

    content: Mapping[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """The estimators in order, without the STE."""
        return tuple(self.content["estimators"])

    @property
    def grid(self) -> tuple[float, ...]:
        return tuple(self.content["grid"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.content["seeds"])

    @property
    def extensions(self) -> int:
        """Most rates that are added for one estimator."""
        return int(self.content["extensions"])

    @property
    def metric(self) -> str:
        """``accuracy`` or ``loss``."""
        return str(self.content["metric"])

    @property
    def sign(self) -> int:
        """1 if a larger metric is better, otherwise -1."""
        return 1 if self.metric == "accuracy" else -1

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The curve of the STE, then of each estimator."""
        return {
            label: Curve(dict(sorted(self._cells(role="grid", estimator=label).items())), self)
            for label in (STE, *self.labels)
        }

    def swap_rates(self) -> list[float]:
        """Best rates of estimators that the STE's curve lacks, ascending; empty until that curve is settled."""
        ste = self.curves[STE]
        return sorted({rate for _, rate in self._chosen() if rate not in ste.rates}) if ste.settled else []

    def adjusted(self) -> dict[str, float]:
        """Best rates of the estimators whose counterpart is trained: ``remap``, and a learning-rate factor."""
        return {label: rate for label, rate in self._chosen() if self.remapped(label)}

    def remapped(self, label: str) -> bool:
        """Whether the theorem's counterpart of an estimator has its own rate and weights."""
        entry = self.content["estimators"][label]
        return entry["equivalence"] == "remap" and entry["lr_factor"] is not None

    def factor(self, label: str) -> float:
        """Learning-rate factor α of the STE that corresponds to an estimator; 1 if the optimizer needs none."""
        return float(self.content["estimators"][label]["lr_factor"]) if self.remapped(label) else 1.0

    def swapped_cells(self, rate: float) -> Cells:
        """Cells of the STE at another estimator's rate."""
        return self.curves[STE].cells.get(rate) or self._cells(role="swap").get(rate, {})

    def adjusted_cells(self, label: str) -> Cells:
        """Cells of the theorem's counterpart of an estimator at the estimator's best rate."""
        rate = self.curves[label].best
        return {} if rate is None else self._cells(role="adjusted", of=label).get(rate, {})

    def values(self, cells: Cells, split: str) -> tuple[float | None, ...]:
        """The metric on a split, ``validation`` or ``test``, for each seed; None where it is missing."""
        numbers = (cells.get(seed, {}).get(f"{split}_{self.metric}") for seed in self.seeds)
        return tuple(None if number is None or not math.isfinite(number) else float(number) for number in numbers)

    def faults(self, cells: Cells) -> dict[int, str]:
        """Why cells have no numbers, by seed; seeds without a fault are left out."""
        return {seed: cells[seed]["fault"] for seed in self.seeds if seed in cells and cells[seed]["fault"]}

    def _chosen(self) -> Iterator[tuple[str, float]]:
        """The estimators whose curves are settled, with their best rates."""
        for label in self.labels:
            curve = self.curves[label]
            if curve.best is not None and curve.settled:
                yield label, curve.best

    def _cells(self, **wanted: str) -> dict[float, dict[int, Mapping[str, Any]]]:
        """Cells with these values, by rate and seed."""
        cells: dict[float, dict[int, Mapping[str, Any]]] = {}
        for cell in self.content["cells"]:
            if all(cell.get(key) == value for key, value in wanted.items()):
                cells.setdefault(cell["lr"], {})[cell["seed"]] = cell
        return cells


def complete(values: Sequence[float | None]) -> list[float]:
    """The values if there are any and none is None; otherwise an empty list."""
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(values) else []


def read_study(path: Path) -> Study:
    """Reads ``tune.json``.

    Raises:
        OSError, ValueError, KeyError: the file is unreadable, or qat-tune did not write it.
    """
    content = read_content(path, SCHEMA)
    if content["metric"] not in METRICS:
        raise ValueError(f"{path}: metric {content['metric']!r} is not supported, only {' and '.join(METRICS)} are")
    return Study(content)

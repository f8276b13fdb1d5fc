"""What a fault is: something that happens to the real command, and what has to hold afterwards."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class Outcome:
    """Of one round. ``broken`` has a line for whatever should have held and did not.

    Args:
        ended: "survived", or the one clear line with which the command ended.
        lost_rows: rows before the last checkpoint that are gone.
        differing: numbers of the run, continued, that are not those of the undisturbed one, bit for bit.
        delay: seconds from the fault to the end of the command, or what else the fault bounds.
        counts: how often something was met, by name: the phases of kills, inputs refused and accepted.
        figures: what was measured, by name; the largest of all rounds is told.
    """

    ended: str = "survived"
    lost_rows: int = 0
    differing: int = 0
    delay: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Fault(Protocol):
    """One kind of fault. Instances are sent to other processes."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str:
        """processes, storage, two at once, numbers, surroundings, inputs, readers, endurance."""

    @property
    def rounds(self) -> int:
        """Of a whole campaign."""

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        """One round in ``workplace``, an empty folder that is removed afterwards."""


@dataclass
class Line:
    """The rounds of one fault together: a line of the table and of the record."""

    name: str
    group: str
    rounds: int
    survived: int
    lost_rows: int
    differing: int
    delay: float
    ended: list[str]
    counts: dict[str, int]
    figures: dict[str, float]
    broken: list[str]

    @staticmethod
    def of(fault: Fault, outcomes: Iterable[Outcome]) -> Line:
        """The sum; of delays and figures the largest, of ends and breaches those that differ."""
        outcomes = list(outcomes)
        counts, figures = Counter[str](), dict[str, float]()
        for outcome in outcomes:
            counts.update(outcome.counts)
            for name, value in outcome.figures.items():
                figures[name] = max(value, figures.get(name, value))
        return Line(
            fault.name,
            fault.group,
            len(outcomes),
            sum(outcome.ended == "survived" and not outcome.broken for outcome in outcomes),
            sum(outcome.lost_rows for outcome in outcomes),
            sum(outcome.differing for outcome in outcomes),
            round(max((outcome.delay for outcome in outcomes), default=0.0), 2),
            sorted({outcome.ended for outcome in outcomes} - {"survived"}),
            dict(sorted(counts.items())),
            figures,
            sorted({breach for outcome in outcomes for breach in outcome.broken}),
        )

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

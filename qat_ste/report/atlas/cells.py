"""What ``qat-atlas`` measured, over seeds, and what follows for each estimator under each optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.report.files import no_link
from qat_ste.report.seeds import Summary, summarize

SCHEMA = 1
# When the STE run is near, in distances of the jitter run ("hardly mattered" in a verdict), and when its error
# falls: at an order of 1/4 in the learning rate it falls 1.5 times where the learning rate falls 5 times.
NEAR, FALLING = 5.0, 0.25
SAME, DISGUISE, OPEN, NOT, UNKNOWN = "the same run", "in disguise", "undecided", "not", "no numbers"
ADJUSTMENTS = ("remap", "keep", "exact", "none")


@dataclass(frozen=True)
class Pair:
    """One estimator under one optimizer. ``cells``: by learning rate, the larger one first, then by seed."""

    estimator: str
    optimizer: str
    cells: tuple[tuple[Mapping[str, Any], ...], ...]
    smaller: float

    def over_seeds(self, key: str, lr: int = 1) -> Summary | None:
        """Of one number at the learning rate (0: the larger, 1: the smaller)."""
        return summarize(cell.get(key) for cell in self.cells[lr])

    @cached_property
    def order(self) -> Summary | None:
        """Of the STE's error in the learning rate η, by seed: log(e(η)/e(η/s))/log s; None where errors are 0."""
        errors = zip(*([cell.get("ste") for cell in cells] for cells in self.cells), strict=True)
        found = [math.log(large / small) / math.log(self.smaller) for large, small in errors if large and small]
        return summarize(found)

    @property
    def faults(self) -> list[str]:
        """Why there are no numbers, by seed and learning rate."""
        faulty = (cell for cells in self.cells for cell in cells if cell["fault"])
        return [f"seed {cell['seed']}, lr {cell['lr']:g}: {cell['fault']}" for cell in faulty]

    @property
    def word(self) -> str:
        """What follows, as ``rule`` says it."""
        errors = [cell["ste"] for cells in self.cells for cell in cells]
        if self.faults or None in errors:
            return UNKNOWN
        if not any(errors):
            return SAME
        near = self.over_seeds("equivalent_lr_jitter")
        tests = (near is not None and near.mean <= NEAR, self.order is not None and self.order.mean >= FALLING)
        return DISGUISE if all(tests) else OPEN if any(tests) else NOT

    def fact(self, key: str) -> Any:
        """What is the same in all cells: reason, adjustment, α, L₊/L₋."""
        return next((cell[key] for cells in self.cells for cell in cells if cell.get(key) is not None), None)


@dataclass(frozen=True)
class Atlas:
    """All pairs of a grid; optimizers in the order of their adjustments, then as given."""

    content: Mapping[str, Any]
    estimators: tuple[str, ...]
    optimizers: tuple[str, ...]
    pairs: Mapping[tuple[str, str], Pair]

    def adjustment(self, optimizer: str) -> str:
        return str(self._fact(optimizer, "equivalence") or "none")

    def reason(self, optimizer: str) -> str:
        return str(self._fact(optimizer, "equivalence_reason") or "")

    def groups(self) -> Iterator[tuple[str, list[str]]]:
        """Optimizers by adjustment."""
        for adjustment in ADJUSTMENTS:
            if found := [name for name in self.optimizers if self.adjustment(name) == adjustment]:
                yield adjustment, found

    def words(self, optimizer: str) -> dict[str, list[str]]:
        """Estimators by what follows for them under this optimizer."""
        found: dict[str, list[str]] = {}
        for estimator in self.estimators:
            found.setdefault(self.pairs[estimator, optimizer].word, []).append(estimator)
        return found

    def refusal(self, estimator: str) -> str | None:
        """Why the theorem cannot apply, if so."""
        found = (self.pairs[estimator, optimizer].fact("refused") for optimizer in self.optimizers)
        return next((reason for reason in found if reason), None)

    def _fact(self, optimizer: str, key: str) -> Any:
        pairs = sorted((self.pairs[e, optimizer] for e in self.estimators), key=lambda pair: bool(pair.fact("refused")))
        return next((fact for pair in pairs if (fact := pair.fact(key)) is not None), None)


def read_atlas(path: Path) -> Atlas:
    """From ``atlas.json``.

    Raises:
        OSError, ValueError, KeyError: it cannot be read, or is not qat-atlas's.
    """
    content = read_json(no_link(path))
    if content["schema"] != SCHEMA:
        raise ValueError(f"{path}: schema {content['schema']} where {SCHEMA} is known")
    by_pair: dict[tuple[str, str], list[list[Any]]] = {}
    for cell in content["cells"]:
        both = by_pair.setdefault((cell["estimator"], cell["optimizer"]), [[], []])
        both[content["optimizers"][cell["optimizer"]].index(cell["lr"])].append(cell)
    pairs = {
        key: Pair(
            *key, tuple(tuple(sorted(cells, key=lambda cell: cell["seed"])) for cells in both), content["smaller"]
        )
        for key, both in by_pair.items()
    }
    atlas = Atlas(content, tuple(content["estimators"]), tuple(content["optimizers"]), pairs)
    ordered = [name for _, names in atlas.groups() for name in names]
    return Atlas(content, atlas.estimators, tuple(ordered), pairs)


def rule(smaller: float) -> str:
    """The rule of ``Pair.word`` in words."""
    return (
        "An estimator counts as the STE in disguise under an optimizer if, averaged over seeds, both hold: at the "
        f"smaller learning rate its STE counterpart ends at most {NEAR:g} times as far from it as a 1 % change of the "
        f"learning rate takes it (near), and where the learning rate falls {smaller:g} times, that distance falls at "
        f"least {smaller**FALLING:.2g} times (an order of {FALLING:g} or more: getting nearer). Undecided: one of the "
        "two. The same run: all distances are exactly 0."
    )

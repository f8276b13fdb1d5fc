"""Runs that differ in nothing but the seed belong together; groups that are rows of one experiment stand together."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qat_ste.base.text import one_line
from qat_ste.report.seeds import Summary, summarize
from qat_ste.report.sweep.folders import Problem, Run
from qat_ste.report.sweep.labels import comparable, labels
from qat_ste.report.tables import added

# Rows and experiments of the paper's comparison, in its order. Others come after them, by name.
ROWS = {
    "default": "default",
    "scaledown": "scaledown",
    "scaledown_matched": "scaledown (matched)",
    "bits_1": "1 bit",
    "bits_4": "4 bits",
}
EXPERIMENTS = ("mnist_sgd", "mnist_adam", "mnist_flax_sgd", "mnist_flax_adam", "imagenet_sgd", "imagenet_adam")
SCALEDOWN = ("scaledown", "scaledown_matched")  # rows with smaller steps
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed. ``label``: in which keys it differs from groups of the same name."""

    experiment: str | None
    row: str
    label: str
    runs: tuple[Run, ...]

    @property
    def setup(self) -> str:
        """What stands above a table: groups of one set-up differ by their row alone."""
        return ", ".join(part for part in (self.experiment, self.label) if part) or "runs"

    @property
    def counterparts(self) -> list[str]:
        """The paper's order, others after them; ``naive`` only where it is a run of its own."""
        names = dict.fromkeys(name for run in self.runs for name in run.members if name != "reference")
        if not self.remapped:
            names.pop("naive", None)
        known = [name for name in ("ste", "jitter", "naive") if name in names]
        return known + [name for name in names if name not in known]

    @property
    def added(self) -> dict[str, str]:
        """Titles of its metrics that version 0.1.0 did not have."""
        return {name: title for run in self.runs for name, title in added(run.rows).items()}

    @property
    def remapped(self) -> bool:
        """Whether learning rate and initial weights of ``ste`` were adjusted."""
        return all(run.equivalence == "remap" for run in self.runs)

    def values(self, member: str, metric: str) -> dict[int | None, float]:
        """By seed; runs without that number are left out."""
        numbers = {run.seed: run.members.get(member, {}).get(metric) for run in self.runs}
        return {seed: number for seed, number in numbers.items() if number is not None}

    def summary(self, member: str, metric: str) -> Summary | None:
        return summarize(self.values(member, metric).values())


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[Problem]]:
    """Groups in the paper's order. Of runs that repeat one another the last counts; the others are told of."""
    by_configuration: dict[str, dict[int | None, Run]] = defaultdict(dict)
    repeated = []
    for run in runs:
        key = json.dumps([run.choices.get("experiment"), _row(run), comparable(run.config)], sort_keys=True)
        alike = by_configuration[key]
        if run.seed in alike:
            place = one_line(str(run.folder))
            reason = f"seed {run.seed} of the same configuration is in {place} too; that one is counted"
            repeated.append(Problem(alike[run.seed].folder, "repeated", reason))
        alike[run.seed] = run
    groups = [
        Group(first.choices.get("experiment"), _row(first), "", tuple(ordered))
        for alike in by_configuration.values()
        for ordered in [sorted(alike.values(), key=lambda run: (run.seed is None, run.seed or 0))]
        for first in ordered[:1]
    ]
    return sorted(_labelled(groups), key=_place), repeated


def _row(run: Run) -> str:
    return run.choices.get("row", "default")


def _labelled(groups: Sequence[Group]) -> list[Group]:
    alike: dict[tuple[str | None, str], list[Group]] = defaultdict(list)
    for group in groups:
        alike[group.experiment, group.row].append(group)
    labelled = []
    for members in alike.values():
        names = labels([comparable(group.runs[0].config) for group in members])
        labelled += [replace(group, label=name) for group, name in zip(members, names, strict=True)]
    return labelled


def _place(group: Group) -> tuple[Any, ...]:
    experiments, rows = (*EXPERIMENTS, group.experiment), (*ROWS, group.row)
    return (
        group.experiment is None,
        experiments.index(group.experiment),
        group.experiment or "",
        [float(part) if place % 2 else part for place, part in enumerate(NUMBER.split(group.label))],
        group.label,
        rows.index(group.row),
        group.row,
    )

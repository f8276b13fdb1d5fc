"""Groups runs that differ only in their seed, and sorts the groups by experiment and row."""

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
from qat_ste.report.sweep.labels import comparable, labels, with_options
from qat_ste.report.tables import added

# Rows and experiments in the paper's order; others follow by name.
ROWS = {
    "default": "default",
    "scaledown": "scaledown",
    "scaledown_matched": "scaledown (matched)",
    "bits_1": "1 bit",
    "bits_4": "4 bits",
}
EXPERIMENTS = ("mnist_sgd", "mnist_adam", "mnist_flax_sgd", "mnist_flax_adam", "imagenet_sgd", "imagenet_adam")
SCALEDOWN = ("scaledown", "scaledown_matched")  # rows with a smaller learning rate
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed. ``label``: the keys that differ between groups of one experiment and row."""

    experiment: str | None
    row: str
    label: str
    runs: tuple[Run, ...]

    @property
    def setup(self) -> str:
        """Title of its table; groups of one set-up differ only in their row."""
        return ", ".join(filter(None, (self.experiment, self.label))) or "runs"

    @property
    def counterparts(self) -> list[str]:
        """Names in the paper's order, then others; ``naive`` only if it differs from ``ste``."""
        names = dict.fromkeys(name for run in self.runs for name in run.members if name != "reference")
        if not self.remapped:
            names.pop("naive", None)
        first = [name for name in ("ste", "jitter", "naive") if name in names]
        return first + [name for name in names if name not in first]

    @property
    def added(self) -> dict[str, str]:
        """Titles of metrics that version 0.1.0 did not have."""
        return {name: title for run in self.runs for name, title in added(run.rows).items()}

    @property
    def remapped(self) -> bool:
        """Whether learning rate and initial weights of ``ste`` were adjusted."""
        return all(run.equivalence == "remap" for run in self.runs)

    def values(self, member: str, metric: str) -> dict[int | None, float]:
        """Returns the numbers of a member by seed, without runs that lack it."""
        numbers = {run.seed: run.members.get(member, {}).get(metric) for run in self.runs}
        return {seed: number for seed, number in numbers.items() if number is not None}

    def summary(self, member: str, metric: str) -> Summary | None:
        """Summarizes a number over seeds."""
        return summarize(self.values(member, metric).values())


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[Problem]]:
    """Groups runs, in the paper's order; the last of runs with one seed counts, the others become problems."""
    by_configuration: dict[str, dict[int | None, Run]] = defaultdict(dict)
    repeated = []
    for run in runs:
        key = json.dumps([run.choices.get("experiment"), _row(run), comparable(run.config)], sort_keys=True)
        by_seed = by_configuration[key]
        if run.seed in by_seed:
            reason = (
                f"{one_line(str(run.folder))} has the same configuration and seed {run.seed} and is counted instead"
            )
            repeated.append(Problem(by_seed[run.seed].folder, "repeated", reason))
        by_seed[run.seed] = run
    groups = [
        Group(first.choices.get("experiment"), _row(first), "", tuple(ordered))
        for by_seed in by_configuration.values()
        for ordered in [sorted(by_seed.values(), key=lambda run: (run.seed is None, run.seed or 0))]
        for first in ordered[:1]
    ]
    return sorted(_labelled(groups), key=_place), repeated


def _row(run: Run) -> str:
    return run.choices.get("row", "default")


def _labelled(groups: Sequence[Group]) -> list[Group]:
    by_name: dict[tuple[str | None, str], list[Group]] = defaultdict(list)
    for group in groups:
        by_name[group.experiment, group.row].append(group)
    labelled = []
    for members in by_name.values():
        first = [group.runs[0] for group in members]
        names = labels(with_options([comparable(run.config) for run in first], [run.choices for run in first]))
        labelled += [replace(group, label=name) for group, name in zip(members, names, strict=True)]
    return labelled


def _place(group: Group) -> tuple[Any, ...]:
    experiments, rows = (*EXPERIMENTS, group.experiment), (*ROWS, group.row)
    return (
        group.experiment is None,
        experiments.index(group.experiment),
        group.experiment or "",
        [float(text) if place % 2 else text for place, text in enumerate(NUMBER.split(group.label))],
        group.label,
        rows.index(group.row),
        group.row,
    )

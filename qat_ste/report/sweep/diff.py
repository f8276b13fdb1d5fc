"""Two runs or two sweeps side by side: configuration and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qat_ste.base.text import one_line
from qat_ste.report.sweep.findings import Findings
from qat_ste.report.sweep.groups import Group
from qat_ste.report.sweep.labels import comparable, written
from qat_ste.report.sweep.paper_table import REFERENCE_ACCURACY, measure, paper_tables

MISSING = "–"
Line = tuple[str, str, str]  # what, in A, in B


@dataclass(frozen=True)
class Difference:
    """A group that both sides have: keys of configuration and environment that differ, and all its numbers."""

    name: str
    configuration: tuple[Line, ...]
    numbers: tuple[Line, ...]


@dataclass(frozen=True)
class Differences:
    """Groups of both sides, and the names of those on one side alone."""

    both: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_findings(a: Findings, b: Findings) -> Differences:
    """Groups are matched by set-up and row; one group against one group whatever they are called."""
    if len(a.groups) == len(b.groups) == 1:
        return Differences((_difference(a.groups[0], b.groups[0]),), (), ())
    of_a, of_b = ({_name(group): group for group in findings.groups} for findings in (a, b))
    return Differences(
        tuple(_difference(group, of_b[name]) for name, group in of_a.items() if name in of_b),
        tuple(name for name in of_a if name not in of_b),
        tuple(name for name in of_b if name not in of_a),
    )


def _name(group: Group) -> str:
    return one_line(group.setup if group.row == "default" else f"{group.setup}, row {group.row}")


def _difference(a: Group, b: Group) -> Difference:
    name = _name(a) if _name(a) == _name(b) else f"{_name(a)} | {_name(b)}"
    settings = [_settings(group) for group in (a, b)]
    return Difference(name, _unequal(*settings), tuple(_numbers(a, b)))


def _settings(group: Group) -> dict[str, str]:
    """Of the first run, but for the seeds, which are those of all."""
    run = group.runs[0]
    about: dict[str, Any] = {
        "seeds": ", ".join(str(run.seed) for run in group.runs),
        **comparable(run.config),
        "steps": run.steps,
        "equivalence": run.equivalence,
        "device": run.machine["device"],
        **{f"version of {name}": version for name, version in run.machine["versions"].items()},
    }
    return {key: one_line(written(value)) for key, value in about.items()}


def _unequal(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Line, ...]:
    lines = [(key, a.get(key, MISSING), b.get(key, MISSING)) for key in dict.fromkeys((*a, *b))]
    return tuple(line for line in lines if line[1] != line[2])


def _numbers(a: Group, b: Group) -> Sequence[Line]:
    tables = [paper_tables(measure([group]), a.added | b.added)[0] for group in (a, b)]
    rows = list(tables[0].rows)
    columns = [{column.counterpart: column.shown for column in table.columns} for table in tables]
    lines = []
    for name in dict.fromkeys(name for side in columns for name in side):
        for key, *values in zip(rows, *(side.get(name, [MISSING] * len(rows)) for side in columns), strict=True):
            if key != REFERENCE_ACCURACY:
                lines.append((f"{name}/{key}", *values))
    place = rows.index(REFERENCE_ACCURACY)
    in_a, in_b = (next((shown[place] for shown in side.values()), MISSING) for side in columns)
    return [("reference/test_accuracy", in_a, in_b), *lines]

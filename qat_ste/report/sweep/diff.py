"""Compares two runs or two sweeps: their configurations and numbers, in lines for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qat_ste.base.text import one_line
from qat_ste.report.sweep.findings import Findings
from qat_ste.report.sweep.groups import Group
from qat_ste.report.sweep.labels import TARGET, Flat, comparable, with_options, written
from qat_ste.report.sweep.paper_table import REFERENCE_ACCURACY, measure, paper_tables

MISSING = "–"
NAME_WIDTH, VALUE_WIDTH = 36, 20  # with two gaps of two characters: 80 columns
Line = tuple[str, str, str]  # name, in A, in B


@dataclass(frozen=True)
class Difference:
    """A group of both sides: differing settings, and all numbers below a line with counterpart and seeds."""

    name: str
    configuration: tuple[Line, ...]
    numbers: tuple[Line, ...]


@dataclass(frozen=True)
class Differences:
    """The groups of both sides, and the names of groups of one side only."""

    both: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare_findings(a: Findings, b: Findings) -> Differences:
    """Compares groups of equal set-up and row; a single group is compared with a single group of any name."""
    if len(a.groups) == len(b.groups) == 1:
        return Differences((_difference(a.groups[0], b.groups[0]),), (), ())
    groups_a, groups_b = ({_name(group): group for group in findings.groups} for findings in (a, b))
    return Differences(
        tuple(_difference(group, groups_b[name]) for name, group in groups_a.items() if name in groups_b),
        tuple(name for name in groups_a if name not in groups_b),
        tuple(name for name in groups_b if name not in groups_a),
    )


def _name(group: Group) -> str:
    return one_line(group.setup if group.row == "default" else f"{group.setup}, row {group.row}")


def _difference(a: Group, b: Group) -> Difference:
    name = _name(a) if _name(a) == _name(b) else f"{_name(a)} | {_name(b)}"
    configs = with_options([comparable(g.runs[0].config) for g in (a, b)], [g.runs[0].choices for g in (a, b)])
    settings = [_settings(group, config) for group, config in zip((a, b), configs, strict=True)]
    return Difference(name, _unequal(*settings), _numbers(a, b))


def _settings(group: Group, config: Flat) -> dict[str, str]:
    """Returns the settings of the first run and the seeds of all runs."""
    run = group.runs[0]
    settings: dict[str, Any] = {
        "seeds": ", ".join(str(run.seed) for run in group.runs),
        **{key.removesuffix(TARGET): value for key, value in config.items()},
        "steps": run.steps,
        "equivalence": run.equivalence,
        "device": run.machine["device"],
        **{f"version of {name}": version for name, version in run.machine["versions"].items()},
    }
    return {key: one_line(written(value)) for key, value in settings.items()}


def _unequal(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Line, ...]:
    lines = [(key, a.get(key, MISSING), b.get(key, MISSING)) for key in dict.fromkeys((*a, *b))]
    return tuple(_fitted(*line) for line in lines if line[1] != line[2])


def _fitted(name: str, a: str, b: str) -> Line:
    """Fits a line into 80 columns: keeps the end of a long name and long values around their first difference."""
    same = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, min(same - 5, max(len(a), len(b)) - VALUE_WIDTH))
    in_a, in_b = (one_line("…" + text[start + 1 :] if start else text, VALUE_WIDTH) for text in (a, b))
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}", in_a, in_b


def _numbers(a: Group, b: Group) -> tuple[Line, ...]:
    tables = [paper_tables(measure([group]), a.added | b.added)[0] for group in (a, b)]
    sides = [{column.counterpart: column for column in table.columns} for table in tables]
    titles = tables[0].rows
    place = list(titles).index(REFERENCE_ACCURACY)
    accuracies = [next((column.shown[place] for column in side.values()), MISSING) for side in sides]
    lines = [_fitted(titles[REFERENCE_ACCURACY], *accuracies)]
    for name in dict.fromkeys(name for side in sides for name in side):
        columns = [side.get(name) for side in sides]
        lines.append(_fitted(name, *(f"n = {column.n}" if column else MISSING for column in columns)))
        shown = zip(*(column.shown if column else [MISSING] * len(titles) for column in columns), strict=True)
        for (key, title), values in zip(titles.items(), shown, strict=True):
            if key != REFERENCE_ACCURACY:
                lines.append(_fitted(f"  {title}", *values))
    return tuple(lines)

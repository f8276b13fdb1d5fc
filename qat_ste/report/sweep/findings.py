"""What runs say, read from their folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qat_ste.report.sweep.claims import Claim, all_claims
from qat_ste.report.sweep.folders import NoRunsError, Problem, read_runs
from qat_ste.report.sweep.groups import Group, group_runs
from qat_ste.report.sweep.paper_table import Measured, measure

__all__ = ["Findings", "NoRunsError", "find"]


@dataclass(frozen=True)
class Findings:
    """What the runs say. ``problems``: the folders that are not counted."""

    groups: tuple[Group, ...]
    claims: tuple[Claim, ...]
    measured: Measured
    problems: tuple[Problem, ...]

    @property
    def added(self) -> dict[str, str]:
        """Titles of metrics that version 0.1.0 did not have."""
        return {name: title for group in self.groups for name, title in group.added.items()}


def find(folders: Sequence[Path]) -> Findings:
    """Reads and tests the runs at or below the folders.

    Raises:
        NoRunsError: a folder does not exist or holds no run, no run in them is finished,
            or they hold too many.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NoRunsError(f"{folder}: no such folder; give the folder of a run, or one with runs below it")
    runs, problems = read_runs(folders)
    if not runs and not problems:
        where = ", ".join(str(folder) for folder in folders)
        raise NoRunsError(f"{where}: no run folder there or below; qat-run makes one, with results.json in it")
    groups, repeated = group_runs(runs)
    if not groups:
        count = f"{len(problems)} run folder{'s' if len(problems) > 1 else ''}"
        raise NoRunsError(f"no finished run among {count}; wait for one, or run qat-run again there", problems)
    return Findings(tuple(groups), tuple(all_claims(groups)), measure(groups), (*problems, *repeated))

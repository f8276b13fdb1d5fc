"""Reads run folders, groups the runs and tests the claims."""

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
    """Groups of runs with their claims and numbers. ``problems``: the skipped folders."""

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
        NoRunsError: a folder does not exist or has no run, no run is finished, or there are too many.
    """
    for folder in folders:
        if not folder.is_dir():
            raise NoRunsError(f"{folder}: no such folder; give a run folder or a folder of runs")
    runs, problems = read_runs(folders)
    if not runs and not problems:
        where = ", ".join(str(folder) for folder in folders)
        raise NoRunsError(f"{where}: no run folder at or below it; qat-run writes one, with results.json in it")
    groups, repeated = group_runs(runs)
    if not groups:
        count = f"{len(problems)} run folder{'s' if len(problems) > 1 else ''}"
        raise NoRunsError(f"no finished run in {count}; wait for one, or start it again with qat-run", problems)
    return Findings(tuple(groups), tuple(all_claims(groups)), measure(groups), (*problems, *repeated))

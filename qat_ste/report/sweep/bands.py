"""Averages curves over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qat_ste.report.columns import Columns
from qat_ste.report.sweep.groups import Group

SHARES = np.linspace(0, 1, 201)  # completed shares of the training


@dataclass(frozen=True)
class Band:
    """Mean, minimum and maximum over seeds at ``SHARES``, shape (201,); NaN before the first row of a seed."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bands(group: Group, keys: Sequence[str]) -> dict[str, Band]:
    """Returns the band of each key of ``metrics.jsonl`` that a run of the group has."""
    curves: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for run in group.runs:
        columns = Columns(run.folder / "metrics.jsonl", keys)
        for key in keys:
            points = columns.series(key)
            if len(points):
                shares = points[:, 0] / (run.steps or points[-1, 0])
                curves[key].append(np.interp(SHARES, shares, points[:, 1], left=np.nan))
    return {
        key: Band(stacked.mean(axis=0), stacked.min(axis=0), stacked.max(axis=0))
        for key, by_run in curves.items()
        if by_run
        for stacked in [np.stack(by_run)]
    }

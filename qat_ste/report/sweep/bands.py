"""Curves over training with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qat_ste.report.columns import Columns
from qat_ste.report.sweep.groups import Group

SHARES = np.linspace(0, 1, 201)  # of the training done


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest seed at each of ``SHARES``; NaN before the first row. Shapes (201,)."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def bands(group: Group, keys: Sequence[str]) -> dict[str, Band]:
    """A band for each key of ``metrics.jsonl`` that any run of the group has."""
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
        for key, alike in curves.items()
        if alike
        for stacked in [np.stack(alike)]
    }

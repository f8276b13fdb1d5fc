"""Reads columns of ``metrics.jsonl`` in one pass and in bounded memory."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qat_ste.report.files import regular

CHUNKS = 200  # a long run is cut into so many; each keeps the extremes of its columns
ROWS_AT_ONCE = 20_000
LONGEST_LINE, MOST_BYTES = 1 << 20, 4 << 30  # in bytes; of the file


class Columns:
    """Values of some keys in all rows; of very many rows, only those with a local extreme of a key.

    A missing file has no rows. ``broken_lines`` counts the lines that cannot be parsed, as the last one of a run that
    was killed.

    Args:
        path: ``metrics.jsonl``.
        keys: to read beside the step.

    Raises:
        OSError: the file is too large, a symbolic link or not a regular file.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self.broken_lines = 0
        self._table = np.empty((0, 1 + len(self.keys)))
        try:
            with regular(path, MOST_BYTES).open("rb") as file:
                for rows in self._batches(file):
                    self._table = _thinned(np.concatenate([self._table, rows]))
        except FileNotFoundError:
            pass

    def series(self, key: str) -> np.ndarray:
        """Returns (step, value) of the rows that have this key; shape (rows, 2)."""
        if key not in self.keys:
            return np.empty((0, 2))
        points = self._table[:, [0, 1 + self.keys.index(key)]]
        return points[~np.isnan(points[:, 1])]

    def _batches(self, file: BinaryIO) -> Iterator[np.ndarray]:
        width = 1 + len(self.keys)
        values = array("d")
        while line := file.readline(LONGEST_LINE):
            if (row := _row(line)) is None:
                self.broken_lines += 1
                continue
            values.append(row["step"])
            values.extend(_number(row.get(key)) for key in self.keys)
            if len(values) >= ROWS_AT_ONCE * width:
                yield np.array(values).reshape(-1, width)
                values = array("d")
        yield np.array(values).reshape(-1, width)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and math.isfinite(_number(row.get("step"))) else None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e300 else math.nan


def _thinned(table: np.ndarray) -> np.ndarray:
    """Cuts a long table into ``CHUNKS`` of equally many steps; keeps their first rows and the extremes of columns."""
    if len(table) <= CHUNKS * table.shape[1] * 2:
        return table
    steps = np.maximum.accumulate(table[:, 0]).clip(0)  # a damaged file may count backwards
    chunk = (steps / (steps[-1] + 1) * CHUNKS).astype(int)
    kept = {len(table) - 1}
    for start, stop in zip(*_bounds(chunk), strict=True):
        kept.add(int(start))
        for column in table[start:stop, 1:].T:
            if not np.isnan(column).all():
                kept |= {int(start + np.nanargmin(column)), int(start + np.nanargmax(column))}
    return table[sorted(kept)]


def _bounds(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.r_[True, chunk[1:] != chunk[:-1]])
    return starts, np.r_[starts[1:], len(chunk)]

"""Reads a run folder."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


class RunFiles:
    """Results, rows and drawn weights of one finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Latent weights over max: ``<member>/initial``, ``/final`` and ``/mapped_reference`` of those drawn."""
        with np.load(self.folder / "weights.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    @property
    def counterparts(self) -> list[str]:
        return list(self.results["counterparts"])

    @property
    def main_counterpart(self) -> str:
        return "ste" if "ste" in self.counterparts else self.counterparts[0]

    def series(self, key: str) -> np.ndarray:
        """(step, value) of all rows that have this key; shape (rows, 2)."""
        points = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
        return np.array(points, dtype=np.float64).reshape(-1, 2)

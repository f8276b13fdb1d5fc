"""Reads the folder of a finished run."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qat_ste.report.columns import Columns
from qat_ste.report.files import no_link, read_text

AGREEMENT = "quantized_weight_agreement"
_ERROR = "weight_alignment_error"
DRAWN = ("train_loss", "validation_accuracy", _ERROR, f"{_ERROR}_unmapped", f"{_ERROR}_bound", AGREEMENT)


class RunFiles:
    """Results, rows and drawn weights of one finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def results(self) -> dict[str, Any]:
        return json.loads(read_text(self.folder / "results.json"))

    @cached_property
    def _columns(self) -> Columns:
        members = ("reference", *self.counterparts)
        return Columns(self.folder / "metrics.jsonl", [f"{member}/{key}" for member in members for key in DRAWN])

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Latent weights over max: ``<member>/initial``, ``/final`` and ``/mapped_reference`` of those drawn."""
        with np.load(no_link(self.folder / "weights.npz"), allow_pickle=False) as arrays:
            return dict(arrays)

    @property
    def counterparts(self) -> list[str]:
        return list(self.results["counterparts"])

    @property
    def main_counterpart(self) -> str:
        return "ste" if "ste" in self.counterparts else self.counterparts[0]

    def series(self, key: str) -> np.ndarray:
        """(step, value) of the rows that have this key, one of ``DRAWN`` of a member; shape (rows, 2)."""
        return self._columns.series(key)

"""Reads the folder of a finished run."""

from __future__ import annotations

import zipfile
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic

from qat_ste.report.columns import Columns
from qat_ste.report.files import regular
from qat_ste.report.results import read_results

MOST_BYTES, MOST_WEIGHTS_BYTES = 64 << 20, 4 << 20  # of weights.npz and of one array in it
AGREEMENT = "quantized_weight_agreement"
_ERROR = "weight_alignment_error"
DRAWN = ("train_loss", "validation_accuracy", _ERROR, f"{_ERROR}_unmapped", f"{_ERROR}_bound", AGREEMENT)


class RunFiles:
    """Results, logged rows and sampled weights of one finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of ``results.json``; raises what ``read_results`` raises."""
        return read_results(self.folder)

    @cached_property
    def _columns(self) -> Columns:
        members = ("reference", *self.counterparts)
        keys = [f"{member}/{key}" for member in members for key in DRAWN]
        keys += [f"{name}@{length}/{_ERROR}" for length in [*self.segments][:1] for name in self.counterparts]
        return Columns(self.folder / "metrics.jsonl", keys)

    def weights(self, key: str) -> np.ndarray:
        """Returns a sample of latent weights, in units of the largest level.

        Args:
            key: ``<member>/initial``, ``<member>/final`` or ``<counterpart>/mapped_reference``.

        Raises:
            OSError, ValueError, KeyError: ``weights.npz`` cannot be read or lacks such an array.
        """
        with zipfile.ZipFile(regular(self.folder / "weights.npz", MOST_BYTES)) as file:
            if (size := file.getinfo(f"{key}.npy").file_size) > MOST_WEIGHTS_BYTES:  # of the array, decompressed
                raise ValueError(f"{key} has {size:,} bytes, more than the limit of {MOST_WEIGHTS_BYTES:,}")
            content = BytesIO(file.read(f"{key}.npy"))
        if read_magic(content) != (1, 0):
            raise ValueError(f"{key} must be an array of NumPy's format version 1.0")
        shape, _, dtype = read_array_header_1_0(content)
        if len(shape) != 1 or dtype.kind != "f":
            raise ValueError(f"{key} must be a list of floats, got shape {shape} and type {dtype}")
        return np.frombuffer(content.read(), dtype)

    @property
    def segments(self) -> dict[int, dict[str, dict[str, Any]]]:
        """Numbers of segments by length, ascending, and counterpart; empty for a run without segments."""
        segments: dict[int, dict[str, dict[str, Any]]] = self.results["segments"]
        return segments

    @property
    def counterparts(self) -> list[str]:
        """Names of the counterparts."""
        return list(self.results["counterparts"])

    @property
    def main_counterpart(self) -> str:
        """The counterpart that figures show: ``ste`` if there is one."""
        return "ste" if "ste" in self.counterparts else self.counterparts[0]

    def series(self, key: str) -> np.ndarray:
        """Returns (step, value) of the rows that have this key; shape (rows, 2).

        Args:
            key: ``<member>/<one of DRAWN>``, or ``<counterpart>@<shortest length>/weight_alignment_error``.
        """
        return self._columns.series(key)

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

MOST_BYTES, MOST_WEIGHTS_BYTES = 64 << 20, 4 << 20  # of weights.npz, and of an array in it
AGREEMENT = "quantized_weight_agreement"
_ERROR = "weight_alignment_error"
DRAWN = ("train_loss", "validation_accuracy", _ERROR, f"{_ERROR}_unmapped", f"{_ERROR}_bound", AGREEMENT)


class RunFiles:
    """Results, rows and drawn weights of one finished run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def results(self) -> dict[str, Any]:
        """As ``read_results`` gives them, with what that raises."""
        return read_results(self.folder)

    @cached_property
    def _columns(self) -> Columns:
        members = ("reference", *self.counterparts)
        return Columns(self.folder / "metrics.jsonl", [f"{member}/{key}" for member in members for key in DRAWN])

    def weights(self, key: str) -> np.ndarray:
        """Latent weights over max, of those drawn; keys are ``<member>/initial``, ``/final``, ``/mapped_reference``.

        Raises:
            OSError, ValueError, KeyError: there are none, or they are no such array.
        """
        with zipfile.ZipFile(regular(self.folder / "weights.npz", MOST_BYTES)) as file:
            if (size := file.getinfo(f"{key}.npy").file_size) > MOST_WEIGHTS_BYTES:  # unpacked; no more is read
                raise ValueError(f"{key} has {size:,} bytes where {MOST_WEIGHTS_BYTES:,} are the most")
            content = BytesIO(file.read(f"{key}.npy"))
        if read_magic(content) != (1, 0):
            raise ValueError(f"{key} is of a later version")
        shape, _, dtype = read_array_header_1_0(content)
        if len(shape) != 1 or dtype.kind != "f":
            raise ValueError(f"{key} is of shape {shape} and {dtype}")
        return np.frombuffer(content.read(), dtype)

    @property
    def counterparts(self) -> list[str]:
        return list(self.results["counterparts"])

    @property
    def main_counterpart(self) -> str:
        return "ste" if "ste" in self.counterparts else self.counterparts[0]

    def series(self, key: str) -> np.ndarray:
        """(step, value) of the rows that have this key, one of ``DRAWN`` of a member; shape (rows, 2)."""
        return self._columns.series(key)

"""Keeps what a page needs of a finished run as one small file, and makes a run folder of it again."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from qat_ste.base.files import read_json, write, write_json
from qat_ste.base.run_config import identity
from qat_ste.report.columns import Columns
from qat_ste.report.run.run_files import DRAWN, RunFiles

POINTS, DIGITS = 50, 5  # of a curve; significant digits of its values
VALIDATED = ("validation_loss", "validation_accuracy")
CUT = ("layers", "command")  # not in a record, nor is what the configuration says of paths


def keep(folder: Path, record: Path, weights: int = 0) -> None:
    """Writes the record of a finished run.

    Args:
        folder: of the run.
        record: the file; its folder is made.
        weights: how many of its sampled weights to keep, for scatter plots.

    Raises:
        OSError, ValueError: the run's files cannot be read.
    """
    results = read_json(folder / "results.json")
    members = [results["reference"], *results["counterparts"].values()]
    members += [numbers for by_name in results.get("segments", {}).values() for numbers in by_name.values()]
    for numbers in (results, *members):
        for key in CUT:
            numbers.pop(key, None)
    results["config"] = identity(results["config"])
    names = ("reference", *results["counterparts"])
    keys = [f"{name}/{key}" for name in names for key in dict.fromkeys((*DRAWN, *VALIDATED))]
    columns = Columns(folder / "metrics.jsonl", keys)
    curves = {key: _thinned(columns.series(key).tolist()) for key in keys}
    lines = [f' "results": {json.dumps(results, ensure_ascii=False)},', ' "curves": {']
    lines.append(_listed({key: points for key, points in curves.items() if points[0]}))
    lines += [" },", ' "weights": {', _listed(_weights(folder, weights) if weights else {})]
    record.parent.mkdir(parents=True, exist_ok=True)
    write(record, "\n".join(["{", *lines, " }", "}", ""]), durable=True)


def restore(record: Path, folder: Path) -> None:
    """Makes a finished run's folder of its record, unless the folder holds results."""
    if (folder / "results.json").exists():
        return
    content = read_json(record)
    rows: dict[float, dict[str, Any]] = defaultdict(dict)
    for key, (steps, values) in content["curves"].items():
        for step, value in zip(steps, values, strict=True):
            rows[step][key] = value
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step} | row) for step, row in sorted(rows.items())]
    write(folder / "metrics.jsonl", "\n".join([*lines, ""]))
    if content["weights"]:
        arrays = {key: np.array(values, np.float32) for key, values in content["weights"].items()}
        np.savez(folder / "weights.npz", allow_pickle=False, **arrays)
    write_json(folder / "results.json", content["results"])
    seconds, steps = content["results"]["wall_seconds"], content["results"]["steps"]
    write_json(folder / "status.json", {"status": "done", "step": steps, "wall_seconds": seconds, "error": None})


def _listed(lists: dict[str, Any]) -> str:
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(values)}" for key, values in lists.items())


def _weights(folder: Path, count: int) -> dict[str, list[float]]:
    """At most ``count`` weights of the reference and of the counterpart that figures show."""
    run = RunFiles(folder)
    name = run.main_counterpart
    keys = ["reference/initial", "reference/final", f"{name}/initial", f"{name}/final"]
    with zipfile.ZipFile(folder / "weights.npz") as file:
        keys += [f"{name}/mapped_reference"] * (f"{name}/mapped_reference.npy" in file.namelist())
    sampled = {key: run.weights(key) for key in keys}
    return {key: [_short(value) for value in of[:: -(-len(of) // count)].tolist()] for key, of in sampled.items()}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _thinned(points: list[list[float]]) -> tuple[list[int], list[float]]:
    """Steps and values of at most ``POINTS`` points, the last one among them."""
    every = -(-len(points) // POINTS)
    kept = points[::-1][:: every or 1][::-1]
    return [int(step) for step, _ in kept], [_short(value) for _, value in kept]

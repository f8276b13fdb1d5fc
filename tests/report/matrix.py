"""Makes the run folders of a sweep from one real short run, with other seeds, choices and made-up errors."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = {
    "default": ("ste", "naive", "jitter"),
    "scaledown": ("ste",),
    "scaledown_matched": ("ste",),
    "bits_1": ("ste", "naive", "jitter"),
    "bits_4": ("ste", "naive", "jitter"),
}
ERRORS = {"ste": 0.05, "jitter": 0.04, "naive": 0.25}
SCALES = {"default": 1.0, "scaledown": 0.4, "scaledown_matched": 0.6, "bits_1": 2.0, "bits_4": 0.5}


def spread(seed: int, name: str) -> float:
    """Returns a factor near 1 for each seed and name."""
    return math.exp(random.Random(f"{seed} {name}").gauss(0, 0.05))


def copy_run(
    source: Path,
    folder: Path,
    seed: int,
    choices: Mapping[str, Any] | None,
    errors: Mapping[str, float],
    equivalence: str = "remap",
    config: Callable[[dict], None] = lambda config: None,
    drawn: bool = False,
) -> Path:
    """Copies a run with these weight alignment errors for its counterparts, and with weights and page if ``drawn``."""
    folder.mkdir(parents=True)
    results = json.loads((source / "results.json").read_text())
    results["config"]["train"]["seed"] = seed
    config(results["config"])
    results["equivalence"] = equivalence
    results.pop("choices", None)
    if choices is not None:
        results["choices"] = dict(choices)
    counterparts, results["counterparts"] = results["counterparts"], {}
    for name, error in errors.items():
        results["counterparts"][name] = dict(counterparts[name]) | {"weight_alignment_error": error}
    (folder / "results.json").write_text(json.dumps(results))
    shutil.copy(source / "status.json", folder)
    with (folder / "metrics.jsonl").open("w") as file:
        for line in (source / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            for name, error in errors.items():
                if f"{name}/weight_alignment_error" in row:
                    row[f"{name}/weight_alignment_error"] = error * spread(seed, f"{name} {row['step']}")
            file.write(json.dumps(row) + "\n")
    if drawn:
        for name in ("weights.npz", "report.html"):
            shutil.copy(source / name, folder)
    return folder


def write_matrix(source: Path, output: Path, seeds: Sequence[int] = (42, 43, 44)) -> Path:
    """Writes the paper's matrix of one set-up: SGD, where all claims hold, and Adam."""
    for experiment, equivalence in (("mnist_sgd", "remap"), ("mnist_adam", "keep")):
        for row, names in ROWS.items():
            if equivalence == "keep" and row.startswith("bits"):
                continue
            for seed in seeds:
                errors = {name: ERRORS[name] * SCALES[row] * spread(seed, f"{row} {name}") for name in names}
                if equivalence == "keep" and "naive" in errors:
                    errors["naive"] = errors["ste"]

                def set_row(config: dict, row: str = row, experiment: str = experiment) -> None:
                    config["quantizer"]["bits"] = {"bits_1": 1, "bits_4": 4}.get(row, 2)
                    config["train"]["share"] = 0.08
                    config["optimizer"]["lr"] = 1e-4 if experiment == "mnist_adam" else 1e-3

                copy_run(
                    source,
                    output / f"{experiment},{row},{seed}",
                    seed,
                    {"experiment": experiment, "row": row, "reproduce": "short", "estimator": "tanh"},
                    errors,
                    equivalence,
                    set_row,
                    drawn=row == "default",
                )
    return output

"""Makes the tables of docs/language_models.md: python scripts/language_models.py [SEED…]; prints Markdown.

Trains eight settings with each seed, by default 1, 2 and 3, in outputs/language_models; finished runs are kept. Eight
runs take about 20 minutes of one core. The text comes with the extra `text`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat_ste.report.seeds import interval_of_mean
from qat_ste.report.tables import shown_estimate

OUTPUT = Path("outputs/language_models")
SETTINGS = {  # name: label, overrides
    "dge_95": ("DGE, E2M1, AdamW, β₂ = 0.95", ["experiment=gpt_fp4_dge"]),
    "dge_999": ("DGE, E2M1, AdamW, β₂ = 0.999", ["experiment=gpt_fp4_dge", "optimizer.betas=[0.9,0.999]"]),
    "stable_2": ("StableQAT, 2 bits, learned scale, AdamW", ["experiment=gpt_stableqat"]),
    "dsq_2": ("DSQ, 2 bits, learned scale, AdamW", ["experiment=gpt_stableqat", "estimator=dsq"]),
    "stable_4": ("StableQAT, 4 bits, learned scale, AdamW", ["experiment=gpt_stableqat", "quantizer.bits=4"]),
    "dsq_4": ("DSQ, 4 bits, learned scale, AdamW", ["experiment=gpt_stableqat", "estimator=dsq", "quantizer.bits=4"]),
    "absmax": ("tanh, int4 by channel, AdamW", ["experiment=gpt_absmax_channel"]),
    "muon": ("tanh, int4 by channel, Muon", ["experiment=gpt_muon"]),
}
LENGTHS = ("5", "40")  # of the experiments' segments


def run(name: str, seed: int) -> dict[str, Any]:
    """The results of one run, trained unless it is finished."""
    folder = OUTPUT / f"{name}_{seed}"
    if not (folder / "results.json").is_file():
        overrides = [*SETTINGS[name][1], f"train.seed={seed}", "logger=none", f"paths.output={OUTPUT}"]
        command = [sys.executable, "-m", "qat_ste.app.run_cli", *overrides, f"hydra.run.dir={folder}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def _difference(runs: Sequence[dict[str, Any]], counterpart: str) -> str:
    """Final validation loss of a counterpart minus the reference's, paired by seed."""
    losses = [each["counterparts"][counterpart]["test_loss"] - each["reference"]["test_loss"] for each in runs]
    return _interval(losses)


def _interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval; of one seed the value alone."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    mean, low, high = interval_of_mean(values)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _delta(results: dict[str, Any]) -> float:
    """The largest of all tensors; 0 for optimizers that have none."""
    by_tensor: dict[str, float] = results.get("movement_in_memory", {})
    return max(by_tensor.values(), default=0.0)


def _segments(runs: Sequence[dict[str, Any]], length: str) -> str:
    """Error of the STE over that of jitter, by seed."""
    verdicts = [each.get("segment_summary", {}).get("verdicts", {}).get(length) for each in runs]
    return ", ".join("–" if each is None else shown_estimate(each["ste_over_jitter"], 2) for each in verdicts)


def comparisons(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints a row a setting."""
    print(
        "| estimator and setting | δ | loss of the reference | STE minus reference | jitter minus reference | `ste` | "
        "`jitter` | `replica` |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, of_seeds in runs.items():
        ste = "ste" if "ste" in of_seeds[0]["counterparts"] else "naive"
        deltas = [_delta(each) for each in of_seeds]
        cells = [
            f"{_mean(deltas):.2g}" if any(deltas) else "–",
            f"{_mean([each['reference']['test_loss'] for each in of_seeds]):.3f}",
            _difference(of_seeds, ste),
            _difference(of_seeds, "jitter"),
        ]
        for counterpart in (ste, "jitter", "replica"):
            errors = [each["counterparts"][counterpart]["weight_alignment_error"] for each in of_seeds]
            cells.append(f"{_mean(errors):.3g}")
        print(f"| {SETTINGS[name][0]} | {' | '.join(cells)} |")


def segments(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the errors in segments, each as a multiple of that of jitter, by seed."""
    print("| estimator and setting | " + " | ".join(f"{length} steps" for length in LENGTHS) + " |\n|---|---|---|")
    for name, of_seeds in runs.items():
        if any("segment_summary" in each for each in of_seeds):
            print(f"| {SETTINGS[name][0]} | {' | '.join(_segments(of_seeds, length) for length in LENGTHS)} |")


def start_alike(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the final losses of StableQAT, DSQ and the STE from the same float networks, less that of the STE."""
    print("| bits | STE | StableQAT minus STE | DSQ minus STE |\n|---:|---:|---:|---:|")
    for bits in (2, 4):
        stable, dsq = runs[f"stable_{bits}"], runs[f"dsq_{bits}"]
        ste = [each["counterparts"]["ste"]["test_loss"] for each in stable]
        cells = [
            _interval([each["reference"]["test_loss"] - loss for each, loss in zip(of_seeds, ste, strict=True)])
            for of_seeds in (stable, dsq)
        ]
        print(f"| {bits} | {_mean(ste):.3f} | {' | '.join(cells)} |")


def main() -> None:
    seeds = [int(text) for text in sys.argv[1:]] or [1, 2, 3]
    runs = {name: [run(name, seed) for seed in seeds] for name in SETTINGS}
    for table in (comparisons, segments, start_alike):
        table(runs)
        print()


if __name__ == "__main__":
    main()

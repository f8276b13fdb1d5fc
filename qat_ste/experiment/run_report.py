"""The files of a finished run: results, and the page with its figures."""

from __future__ import annotations

import io
import logging
import os
import platform
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qat_ste.base.files import home_path, write
from qat_ste.base.text import of_error
from qat_ste.divergence import metric_titles
from qat_ste.experiment.comparison import Comparison
from qat_ste.loggers.files import RunFolder

log = logging.getLogger(__name__)
PACKAGES = ("qat-ste", "torch", "torchvision", "hydra-core", "omegaconf", "wandb", "numpy", "scikit-learn")


def results_of(comparison: Comparison) -> dict[str, Any]:
    """The part of ``results.json`` that a comparison determines."""
    memory = {"movement_in_memory": comparison.movement_in_memory} if comparison.movement_in_memory else {}
    return (
        {
            "schema": 1,
            "versions": versions(),
            "cpu_count": os.cpu_count(),
            "steps": comparison.steps,
            "quantized_weights": comparison.quantized_weights,
            "sequence_weights": comparison.sequence_weights,
            "lr_factor": comparison.lr_factor,
            "equivalence": comparison.equivalence,
            "equivalence_reason": comparison.equivalence_reason,
            "reference": comparison.reference.as_dict(),
            "counterparts": {name: result.as_dict() for name, result in comparison.counterparts.items()},
            "verdict": vars(comparison.verdict),
            "metrics": metric_titles(),
        }
        | memory
        | ({"start": vars(comparison.start)} if comparison.start else {})
        | (comparison.segments.as_dict() if comparison.segments else {})
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers may depend on."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_page(comparison: Comparison, folder: Path) -> str | None:
    """Writes ``weights.npz``, figures and ``report.html``; returns why the page could not be written, if so.

    A full disk or a missing font must not cost a run its numbers: it costs a warning.
    """
    try:
        weights = io.BytesIO()
        np.savez(weights, **comparison.weights)  # type: ignore[arg-type]
        write(folder / "weights.npz", weights.getvalue())
        from qat_ste.report.run.page import write_report  # imports matplotlib

        for figure, reason in write_report(folder).items():
            log.warning("figure %s could not be drawn: %s", figure, reason)
    except Exception as error:
        reason = f"the report could not be written: {of_error(error)}"
        log.warning("%s; this command writes it later: qat-report %s", reason, shlex.quote(str(folder)))
        return reason
    return None


def write_run(comparison: Comparison, folder: Path) -> Path:
    """Writes the files of ``Comparison.report`` and returns the path of the page.

    Raises:
        RuntimeError: the page could not be written; all other files are.
    """
    folder = home_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = RunFolder(folder)
    for row in comparison.rows:
        files.log_row(row)
    settings = comparison.settings
    choices = {"estimator": settings["estimator"], "optimizer": settings["optimizer"]["name"]}
    choices["model"] = settings["model"]
    origin = {"choices": choices, "config": settings, "device": str(settings["runtime"]["device"])}
    files.log_results(origin | {"wall_seconds": files.wall_seconds, "skipped_images": 0} | results_of(comparison))
    problem = write_page(comparison, folder)
    files.set_status("done", problem)
    files.close(0)
    if problem:
        raise RuntimeError(problem)
    return folder / "report.html"

"""The installed commands; ``run_program`` handles Ctrl-C and a closed terminal from the first import on."""

from __future__ import annotations

from functools import partial
from importlib import import_module

from qat_ste.base.process import run_program


def _run(module: str) -> None:
    run_program(lambda: import_module(f"qat_ste.app.{module}").main())


qat_run = partial(_run, "run_cli")
qat_report = partial(_run, "report_cli")
qat_atlas = partial(_run, "atlas_cli")
qat_tune = partial(_run, "tune_cli")
qat_estimator = partial(_run, "estimator_cli")

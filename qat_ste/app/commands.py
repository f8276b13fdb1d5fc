"""The installed commands: each module is imported where a Ctrl-C, or a terminal that is gone, does no harm any more."""

from __future__ import annotations

from importlib import import_module

from qat_ste.base.process import run_program


def qat_run() -> None:
    """``qat-run``."""
    _run("qat_ste.app.run_cli")


def qat_report() -> None:
    """``qat-report``."""
    _run("qat_ste.app.report_cli")


def qat_atlas() -> None:
    """``qat-atlas``."""
    _run("qat_ste.app.atlas_cli")


def qat_estimator() -> None:
    """``qat-estimator``."""
    _run("qat_ste.app.estimator_cli")


def _run(module: str) -> None:
    run_program(lambda: import_module(module).main())

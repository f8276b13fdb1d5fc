"""Loggers of a run: files in the run folder, the terminal, Weights & Biases."""

from __future__ import annotations

from typing import Any, Protocol

Row = dict[str, Any]


class Logger(Protocol):
    """Logs the rows and the results of one run."""

    def log_row(self, row: Row) -> None:
        """Logs a row of metrics: ``step`` and keys like ``ste/weight_alignment_error``."""

    def log_results(self, results: dict[str, Any]) -> None:
        """Logs the content of ``results.json``."""

    def close(self, exit_code: int) -> None:
        """Ends logging; called once, however the run ends. With exit code 0 the report has been written."""

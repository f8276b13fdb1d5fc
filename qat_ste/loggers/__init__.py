"""Where rows of metrics and results go: files of the run folder, the terminal, Weights & Biases."""

from __future__ import annotations

from typing import Any, Protocol

Row = dict[str, Any]


class Logger(Protocol):
    """Takes in a run as it happens. ``close`` is called once, however the run ends."""

    def log_row(self, row: Row) -> None:
        """One row of metrics; has ``step`` and names such as ``ste/weight_alignment_error``."""

    def log_results(self, results: dict[str, Any]) -> None:
        """What ``results.json`` holds."""

    def close(self, exit_code: int) -> None:
        """The run is over."""

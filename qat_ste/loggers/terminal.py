"""What a person sees: progress while the run trains, and a table, the verdict and the page at its end."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from qat_ste.loggers import Row
from qat_ste.report.tables import shown, table_rows

log = logging.getLogger(__name__)


class TerminalLogger:
    """A progress bar on a terminal; elsewhere a line every ``line_seconds`` seconds."""

    def __init__(self, steps: int, line_seconds: float, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = 200  # a file has room for every column
        self.steps, self.line_seconds = steps, line_seconds
        self._began: tuple[float, int] | None = None
        self._told = time.monotonic()
        self._text = ""
        self._progress = Progress(
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, speed="", text="")
        with _outlived():
            self._progress.start()

    def log_row(self, row: Row) -> None:
        if "reference/train_loss" not in row:
            return
        now, step = time.monotonic(), row["step"]
        self._began = self._began or (now, step)
        seconds, steps = now - self._began[0], step - self._began[1]
        speed = ""
        if seconds and steps:
            speed = f"{steps / seconds:.0f} steps/s" if steps > seconds else f"{seconds / steps:.1f} s/step"
        errors = [
            f"{name.removesuffix('/weight_alignment_error')} {shown(value)}"
            for name, value in row.items()
            if name.endswith("/weight_alignment_error")
        ]
        text = f"loss {row['reference/train_loss']:.3f}  alignment error {', '.join(errors)}"
        self._progress.update(self._task, completed=step, speed=speed, text=text)
        if not self.console.is_terminal and now - self._told >= self.line_seconds:
            left = f"{(self.steps - step) * seconds / steps:.0f} s left" if steps else ""
            self.say(f"step {step}/{self.steps}  {speed}  {left}  {text}")
            self._told = now

    def log_results(self, results: dict[str, Any]) -> None:
        members = {"reference": results["reference"], **results["counterparts"]}
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("")
        for name in members:
            table.add_column(name, justify="right")
        for key, title in table_rows(results["metrics"]).items():
            table.add_row(escape(title), *(shown(numbers.get(key)) for numbers in members.values()))
        with _outlived():
            self._progress.stop()
            self.console.print(table)
            self.console.print()
        self.say(results["verdict"]["statement"], style="bold")

    def say(self, line: str, style: str | None = None) -> None:
        """One line, on the terminal and in ``run.log``."""
        log.info(line)
        with _outlived():
            self.console.print(line, style=style, soft_wrap=not self.console.is_terminal, highlight=False, markup=False)

    def close(self, exit_code: int) -> None:
        with _outlived():
            self._progress.stop()


def _outlived() -> suppress:
    """A terminal that is gone, or a pipe that nobody reads any more, ends no run; of a pipe rich makes a SystemExit."""
    return suppress(OSError, SystemExit)

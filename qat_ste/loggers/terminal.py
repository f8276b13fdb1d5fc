"""Terminal output of a run: progress during training, then tables and the verdict."""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from qat_ste.loggers import Row
from qat_ste.report.tables import shown, shown_estimate, steps, table_rows

log = logging.getLogger(__name__)


class TerminalLogger:
    """Shows a progress bar on a terminal; in a file or a notebook, prints a line every ``line_seconds`` seconds.

    Args:
        steps: the number of training steps.
    """

    def __init__(self, steps: int, line_seconds: float, console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps, self.line_seconds = steps, line_seconds
        self._first: tuple[float, int] | None = None
        self._line_time = time.monotonic()
        self._progress = Progress(
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=self.console,
            expand=True,  # so that the last column is cut, not the others
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, speed="", text="")
        with _ignore_closed_terminal():
            self._progress.start()

    def log_row(self, row: Row) -> None:
        if "reference/train_loss" not in row:
            return
        now, step = time.monotonic(), row["step"]
        self._first = self._first or (now, step)
        seconds, steps = now - self._first[0], step - self._first[1]
        speed = ""
        if seconds and steps:
            speed = f"{steps / seconds:.0f} steps/s" if steps > seconds else f"{seconds / steps:.1f} s/step"
        errors = [
            f"{name.removesuffix('/weight_alignment_error')} {shown(value)}"
            for name, value in row.items()
            if name.endswith("/weight_alignment_error")
        ]
        text = f"loss {row['reference/train_loss']:.3f}" + (f"  alignment error {', '.join(errors)}" if errors else "")
        self._progress.update(self._task, completed=step, speed=speed, text=text)
        if not self.console.is_terminal and now - self._line_time >= self.line_seconds:
            left = f"{(self.steps - step) * seconds / steps:.0f} s left" if steps else ""
            self.say("  ".join(filter(None, (f"step {step}/{self.steps}", speed, left, text))), wrap=True)
            self._line_time = now

    def log_results(self, results: dict[str, Any]) -> None:
        with _ignore_closed_terminal():
            self._progress.stop()
            for table in _tables(results, self.console.width):
                self.console.print(table)
                self.console.print()
        for verdict in results.get("segment_summary", {}).get("verdicts", {}).values():
            self.say(verdict["statement"], wrap=True)
            with _ignore_closed_terminal():
                self.console.print()
        self.say(results["verdict"]["statement"], style="bold", wrap=True)

    def say(self, line: str, style: str | None = None, wrap: bool = False) -> None:
        """Prints a line and logs it to ``run.log``.

        Args:
            wrap: whether to break it between words in a file too, as on a terminal. Words (paths) stay whole.
        """
        log.info(line)
        if wrap or self.console.is_terminal:
            line = textwrap.fill(line, self.console.width, break_long_words=False, break_on_hyphens=False)
        with _ignore_closed_terminal():
            self.console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)

    def close(self, exit_code: int) -> None:
        with _ignore_closed_terminal():
            self._progress.stop()


def _tables(results: dict[str, Any], width: int) -> Iterator[RenderableType]:
    """The results, and those of segments, as tables of at most ``width`` characters."""
    titles = table_rows(results["metrics"])
    members = {"reference": results["reference"], **results["counterparts"]}
    columns = {name: [shown(numbers.get(key)) for key in titles] for name, numbers in members.items()}
    yield from _that_fit(list(titles.values()), columns, width, repeated=1)
    if segments := results.get("segments"):
        columns = {
            name: [
                shown_estimate({**of_name[name], "value": of_name[name]["weight_alignment_error"]}, digits=2)
                for of_name in segments.values()
            ]
            for name in results["counterparts"]
        }
        title = "alignment error in segments (95 % interval)"
        yield from _that_fit([steps(int(length)) for length in segments], columns, width, title=title)


def _that_fit(
    titles: list[str], columns: dict[str, list[str]], width: int, *, repeated: int = 0, title: str | None = None
) -> Iterator[RenderableType]:
    """Tables of as many columns as fit, each with the titles of the rows and the first ``repeated`` columns."""
    gap = 2
    widths = {name: max(map(len, (name, *column))) + gap for name, column in columns.items()}
    title_width = min(max(map(len, titles)), width // 2)
    fixed, names = [*columns][:repeated], [*columns][repeated:]
    room = width - title_width - sum(widths[name] for name in fixed)
    per_table = max(1, room // max((widths[name] for name in names), default=1))
    for start in range(0, max(1, len(names)), per_table):
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("", width=title_width, no_wrap=True)
        shown_here = (*fixed, *names[start : start + per_table])
        for name in shown_here:
            table.add_column(name, justify="right", no_wrap=True)
        for row, text in enumerate(titles):
            table.add_row(Text(text), *(columns[name][row] for name in shown_here))
        yield table if title is None else Group(Text(title), table)  # rich's own title is no wider than the table


def _ignore_closed_terminal() -> suppress:
    """A closed terminal or pipe ends no run; rich raises SystemExit for a closed pipe."""
    return suppress(OSError, SystemExit)

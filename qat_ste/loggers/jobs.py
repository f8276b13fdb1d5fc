"""What a person sees of many jobs: how much is done, and about how long the rest takes."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class JobsProgress:
    """A progress bar on a terminal; elsewhere a line each time something is done.

    Args:
        total: work in units of any kind, of which ``advance`` is told.
        done: what was done before; it says nothing of the speed.
    """

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.total, self.done, self._before, self._began = total, done, done, time.monotonic()
        columns = BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[text]}", markup=False)
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal, transient=True)
        self._task = self._progress.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> JobsProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, units: int, what: str) -> None:
        """So many units more are done, the last of them ``what``."""
        self.done += units
        seconds = time.monotonic() - self._began
        left = seconds * (self.total - self.done) / (self.done - self._before)
        text = f"{self.done / self.total:.0%}, {_span(seconds)} gone, about {_span(left)} left: {what}"
        self._progress.update(self._task, completed=self.done, text=text.partition(", ")[2])
        if not self.console.is_terminal:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

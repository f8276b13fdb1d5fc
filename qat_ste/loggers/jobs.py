"""Terminal output of many jobs: how much is done, and the estimated time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn


class JobsProgress:
    """Shows a progress bar on a terminal; elsewhere prints a line whenever a job ends.

    Args:
        total: work of all jobs, in any unit.
        done: work that was done before; it does not count towards the speed.
    """

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.total, self.done, self._done_before, self._start = total, done, done, time.monotonic()
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
        """Adds the work of a job that ended.

        Args:
            what: describes the job.
        """
        self.done += units
        seconds = time.monotonic() - self._start
        left = seconds * (self.total - self.done) / (self.done - self._done_before)
        text = f"{self.done / self.total:.0%}, {_duration(seconds)} elapsed, about {_duration(left)} left: {what}"
        self._progress.update(self._task, completed=self.done, text=text.partition(", ")[2])
        if not self.console.is_terminal:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

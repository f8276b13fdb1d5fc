"""A fault that happens to the installed command, and what must hold afterwards."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qat_ste.app.job import quoted

from .command import RUN, Ended, end, phases, start, undisturbed
from .run_folder import differing, left_behind, lost_rows, unreadable

MOST_SECONDS = 30  # limit from the fault to the end of all processes


@dataclass
class Trial:
    """One round of a fault: the run that it happens to, and the outcome.

    Args:
        workplace: an empty folder, removed afterwards.
        draw: source of all random choices.
        arguments: of the run.
        ended: "survived", or the line with which the command ended.
        lost_rows: number of missing rows before the last checkpoint.
        differing: numbers of the continued run that differ from the undisturbed run, bit for bit.
        delay: seconds from the fault to the end of the command.
        counts: hits by phase.
        broken: one line for each requirement that did not hold.
    """

    workplace: Path
    draw: random.Random
    arguments: tuple[str, ...] = RUN
    ended: str = "survived"
    lost_rows: int = 0
    differing: int = 0
    delay: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.workplace / "run"

    @property
    def reference(self) -> Path:
        """Folder of the undisturbed run."""
        return undisturbed(*self.arguments)

    def start(self, **options: Any) -> subprocess.Popen[str]:
        """Starts the run; takes the options of ``command.start``."""
        return start(*self.arguments, quoted("hydra.run.dir", str(self.folder)), cwd=self.workplace, **options)

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Waits for a command and checks its terminal output."""
        done = end(process)
        self.broken += done.faults()
        return done

    def run(self, **options: Any) -> Ended:
        """Starts the run and waits for it."""
        return self.end(self.start(**options))

    def pause(self) -> None:
        """Sleeps until a random moment of the run."""
        time.sleep(self.draw.uniform(0, phases(self.reference)["all"][0].seconds))

    def check_stopped(self, since: float) -> None:
        """Checks that all processes end soon after the fault, which happened at ``since``."""
        self.broken += left_behind(self.workplace, MOST_SECONDS)
        self.delay = max(0.0, time.monotonic() - since)
        if self.delay > MOST_SECONDS:
            self.broken.append(f"took more than {MOST_SECONDS} s to end")

    def check_files(self) -> None:
        """Checks, while the run is interrupted, that no row is lost and all files can be read."""
        if self.folder.exists():
            lost, broken = lost_rows(self.folder, self.reference)
            self.lost_rows += lost
            self.broken += broken + unreadable(self.folder) + (["rows are lost"] if lost else [])

    def compare(self, folder: Path, reference: Path) -> None:
        """Checks that a finished run has the numbers of an undisturbed run and that all files can be read."""
        count = differing(folder, reference)
        self.differing += count
        self.broken += unreadable(folder) + (["numbers differ"] if count else [])

    def survive(self, done: Ended) -> None:
        """Checks that the command succeeded with the numbers of the undisturbed run."""
        self.ended = done.line
        if done.code:
            self.broken.append(f"ended with {done.code}: {done.line}")
        else:
            self.compare(self.folder, self.reference)

    def end_clearly(self, done: Ended) -> None:
        """Checks that the command succeeded or ended with one line, and that earlier files can be read."""
        self.ended = done.line
        if done.code == 0 and (self.folder / "results.json").exists():
            self.compare(self.folder, self.reference)
        self.check_files()

    def finish(self) -> None:
        """Repeats the command; checks that it ends with the numbers of the undisturbed run."""
        done = self.run()
        if done.code:
            self.broken.append(f"the same command ends with {done.code}: {done.line}")
        else:
            self.compare(self.folder, self.reference)


@dataclass(frozen=True)
class Fault:
    """One kind of fault. It is sent to other processes.

    Args:
        group: processes, storage, two at once, or surroundings.
        happen: runs one round.
        rounds: in a whole campaign.
        arguments: of the run.
    """

    name: str
    group: str
    happen: Callable[[Trial], None]
    rounds: int = 4
    arguments: tuple[str, ...] = RUN

    def line(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """Returns a line of the record: sums over rounds, longest delay, distinct ends and breaches."""
        return {
            "name": self.name,
            "group": self.group,
            "rounds": len(trials),
            "survived": sum(trial.ended == "survived" and not trial.broken for trial in trials),
            "lost_rows": sum(trial.lost_rows for trial in trials),
            "differing": sum(trial.differing for trial in trials),
            "delay": round(max((trial.delay for trial in trials), default=0.0), 2),
            "ended": sorted({trial.ended for trial in trials} - {"survived"}),
            "counts": dict(sorted(sum((trial.counts for trial in trials), Counter[str]()).items())),
            "broken": sorted({breach for trial in trials for breach in trial.broken}),
        }

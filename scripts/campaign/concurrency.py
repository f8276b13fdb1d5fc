"""Two at once: in one run folder, in one sweep, and a report while a run writes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

from . import command
from .command import RUN, Ended, differing, end, phases, start, undisturbed, unreadable
from .fault import Fault, Outcome
from .processes import survived

SWEEP = ("-m", *RUN, "train.seed=1,2")


def turned_away(second: Ended, key: str, first: int) -> list[str]:
    """What is wrong with the end of the second one."""
    if second.code == 2 and f"{key}=" in second.err and f"in use by process {first} on " in second.err:
        return second.faults()
    return [f"the second one ended with {second.code}: {second.line}", *second.faults()]


@dataclass(frozen=True)
class SameFolder:
    """The same run folder twice: the second stops and names the first, the first does not notice."""

    name: str = "one run folder, two commands"
    group: str = "two at once"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        began = time.monotonic()
        first = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        while not (folder / "status.json").exists() and first.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5 * phases(reference)["training"][0].seconds))
        second = command.run(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        outcome = survived(end(first, began), folder, reference)
        outcome.broken += turned_away(second, "hydra.run.dir", first.pid)
        outcome.delay = second.seconds
        return outcome


@dataclass(frozen=True)
class AtTheSameMoment:
    """Two commands started together: one runs, the other is turned away, whichever it is."""

    name: str = "two commands started together"
    group: str = "two at once"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        began = time.monotonic()
        both = [start(*RUN, f"hydra.run.dir={folder}", cwd=workplace) for _ in range(2)]
        ends = [end(process, began) for process in both]
        winner, loser = sorted(range(2), key=lambda number: ends[number].code)
        outcome = survived(ends[winner], folder, reference)
        if "finished already" not in ends[loser].out:
            outcome.broken += turned_away(ends[loser], "hydra.run.dir", both[winner].pid)
        return outcome


@dataclass(frozen=True)
class SameSweep:
    """The same sweep twice."""

    name: str = "one sweep, two commands"
    group: str = "two at once"
    rounds: int = 3

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        sweep = workplace / "sweep"
        began = time.monotonic()
        first = start(*SWEEP, f"hydra.sweep.dir={sweep}", cwd=workplace)
        while not (sweep / ".lock").exists() and first.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 4))
        second = command.run(*SWEEP, f"hydra.sweep.dir={sweep}", cwd=workplace)
        done = end(first, began)
        outcome = Outcome(done.line, delay=second.seconds, broken=done.faults())
        outcome.broken += turned_away(second, "hydra.sweep.dir", first.pid)
        for seed in (1, 2):
            folder = command.run_of_seed(sweep, seed)
            outcome.differing += differing(folder, undisturbed(*RUN, f"train.seed={seed}"))
            outcome.broken += unreadable(folder)
        return outcome


@dataclass(frozen=True)
class ReportMeanwhile:
    """Reports on a run folder, again and again while the run writes there."""

    name: str = "reports while a run writes"
    group: str = "two at once"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        began, reports = time.monotonic(), 0
        first = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        broken: list[str] = []
        while first.poll() is None:
            report = command.run(str(draw.choice([folder, workplace])), program="qat-report", cwd=workplace)
            broken += report.faults() + ([] if report.code in (0, 2) else [f"a report ended with {report.code}"])
            reports += 1
        outcome = survived(end(first, began), folder, reference)
        outcome.broken += broken
        outcome.counts = {"reports": reports}
        return outcome


CONCURRENCY: tuple[Fault, ...] = (SameFolder(), AtTheSameMoment(), SameSweep(), ReportMeanwhile())

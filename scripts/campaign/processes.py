"""Processes that die, are told to stop, or stand still: in every phase of a run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import command
from .command import RUN, Ended, differing, end, left_behind, lost_rows, phases, start, undisturbed, unreadable
from .fault import Fault, Outcome

EARLY = ("start", "data", "W&B's start", "training", "checkpoint", "evaluation")
LATE = ("results", "figures", "page")
LAST = ("W&B's end",)  # the run is done by then
CONTINUED_FROM = ("training", "checkpoint", "evaluation")


def orders(reference: Path, phase: str, draw: random.Random, number: int, log: Path) -> dict[str, object]:
    """To be struck once in a phase, at a moment drawn from as long as it takes."""
    seen = phases(reference)[phase]
    occurrence = draw.randint(1, min(len(seen), 3))  # a run that is continued has fewer left
    delay = draw.uniform(0, 0.8 * seen[occurrence - 1].seconds) if phase != "training" else draw.uniform(0, 0.3)
    return {"log": str(log), "phase": phase, "occurrence": occurrence, "delay": delay, "signal": number}


def struck(log: Path) -> str | None:
    """The phase in which it was, really."""
    found = [line.split(" ", 2)[2] for line in log.read_text().splitlines() if line.split(" ")[1] == "struck"]
    return found[0] if found else None


def continued(folder: Path, reference: Path, arguments: tuple[str, ...], outcome: Outcome) -> None:
    """The same command again: it has to come to the numbers of the undisturbed run."""
    done = command.run(*arguments, f"hydra.run.dir={folder}", cwd=folder.parent)
    outcome.broken += done.faults()
    if done.code:
        outcome.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    outcome.differing += differing(folder, reference)
    outcome.broken += unreadable(folder) + (["numbers differ"] if outcome.differing else [])


def look(folder: Path, reference: Path, outcome: Outcome) -> None:
    """What has to hold while the run is cut off."""
    if folder.exists():
        lost, broken = lost_rows(folder, reference)
        outcome.lost_rows += lost
        outcome.broken += broken + unreadable(folder) + (["rows are lost"] if lost else [])


@dataclass(frozen=True)
class Kill:
    """``kill -9``, once in each phase of one run, which is continued after each."""

    name: str = "kill -9 in each phase"
    group: str = "processes"
    rounds: int = 24

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder, outcome = undisturbed(*RUN), workplace / "run", Outcome()
        met = Counter[str]()
        for phase in (*draw.sample(EARLY, len(EARLY)), *draw.sample(LATE, len(LATE)), *LAST):
            log = workplace / f"{phase}.log"
            asked = orders(reference, phase, draw, signal.SIGKILL, log)
            began = time.monotonic()
            done = end(start(*RUN, f"hydra.run.dir={folder}", orders=asked, cwd=workplace), began)
            met[struck(log) or "missed"] += done.code == -signal.SIGKILL
            look(folder, reference, outcome)
            if "Traceback" in done.err:
                outcome.broken += done.faults()
        outcome.counts = dict(met)
        outcome.broken += left_behind(workplace)
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class Told:
    """A signal that asks for an end, in a phase that is drawn; of Ctrl-C all processes of the terminal get one."""

    name: str
    number: int
    group: str = "processes"
    rounds: int = 8

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder, outcome = undisturbed(*RUN), workplace / "run", Outcome()
        phase = draw.choice(EARLY + LATE + LAST)
        log = workplace / "phases.log"
        began = time.monotonic()
        asked = orders(reference, phase, draw, self.number, log)
        done = end(start(*RUN, f"hydra.run.dir={folder}", orders=asked, cwd=workplace), began)
        outcome.broken += done.faults()
        if done.code not in (0, 128 + self.number, -self.number):
            outcome.broken.append(f"exit code {done.code}")
        events = [line.split(" ", 2) for line in log.read_text().splitlines()]
        at = [float(moment) for moment, what, _ in events if what == "struck"]
        outcome.delay = max(0.0, began + done.seconds - at[0]) if at else 0.0
        if outcome.delay > 30:
            outcome.broken.append("took more than 30 s to end")
        outcome.counts = {struck(log) or "missed": 1}
        look(folder, reference, outcome)
        outcome.broken += left_behind(workplace)
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class CtrlC:
    """Ctrl-C on a terminal: SIGINT to every process of the group, once or twice, at any moment."""

    name: str = "Ctrl-C, once or twice"
    group: str = "processes"
    rounds: int = 12

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder, outcome = undisturbed(*RUN), workplace / "run", Outcome()
        began = time.monotonic()
        process = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        time.sleep(draw.uniform(0.3, phases(reference)["all"][0].seconds))  # before, Python itself is starting
        at = time.monotonic()
        for _ in range(draw.choice([1, 2])):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                time.sleep(0.2)
        done = end(process, began)
        outcome.delay = max(0.0, began + done.seconds - at)
        outcome.broken += done.faults() + ([f"exit code {done.code}"] if done.code not in (0, 130, -2) else [])
        look(folder, reference, outcome)
        outcome.broken += left_behind(workplace)
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class StandStill:
    """SIGSTOP to all processes of the run for some seconds, at any moment."""

    name: str = "SIGSTOP for 1 to 4 s"
    group: str = "processes"
    rounds: int = 10

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        began = time.monotonic()
        process = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        time.sleep(draw.uniform(0, phases(reference)["all"][0].seconds))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(draw.uniform(1, 4))
            os.killpg(process.pid, signal.SIGCONT)
        return survived(end(process, began), folder, reference)


def survived(done: Ended, folder: Path, reference: Path) -> Outcome:
    """Whether a command that has to come to its end did, with the numbers of the undisturbed run."""
    outcome = Outcome(done.line, broken=done.faults(), delay=done.seconds)
    if done.code:
        outcome.broken.append(f"ended with {done.code}: {done.line}")
    else:
        outcome.differing = differing(folder, reference)
        outcome.broken += unreadable(folder) + (["numbers differ"] if outcome.differing else [])
    return outcome


@dataclass(frozen=True)
class HelperKilled:
    """``kill -9`` to a process that the run has started: it goes on, or ends with a line and can be continued."""

    name: str
    process: str  # what its command line has
    arguments: tuple[str, ...]
    goes_on: bool
    group: str = "processes"
    rounds: int = 10

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*self.arguments), workplace / "run"
        began = time.monotonic()
        main = start(*self.arguments, f"hydra.run.dir={folder}", cwd=workplace)
        victims: list[int] = []
        while not victims and main.poll() is None:
            time.sleep(0.01)
            found = command.processes(workplace)
            victims = [number for number, line in found if self.process in line and number != main.pid]
        time.sleep(
            draw.uniform(0, max(0.1, phases(reference)["all"][0].seconds - phases(reference)["training"][0].begin))
        )
        at = time.monotonic()
        for victim in victims[:1]:
            if main.poll() is None and Path(f"/proc/{victim}").exists():
                os.kill(victim, signal.SIGKILL)
        done = end(main, began)
        if self.goes_on or not done.code:
            outcome = survived(done, folder, reference)
        else:
            outcome = Outcome(done.line, broken=done.faults())
            look(folder, reference, outcome)
            continued(folder, reference, self.arguments, outcome)
        outcome.delay = began + done.seconds - at
        outcome.broken += left_behind(workplace)
        return outcome


SHARED = Path(os.environ.get("QAT_STE_SHARED", "../shared")).resolve()
IMAGES = (
    *RUN,
    "dataset=imagenet",
    "dataset.image_size=32",
    "dataset.workers=2",
    "train.epochs=1",
    "train.steps_per_epoch=60",
    "train.batch_size=16",
    f"paths.data={SHARED / 'data' / 'imagenet-sample'}",
)
PROCESSES: tuple[Fault, ...] = (
    Kill(),
    Told("SIGTERM in a phase", signal.SIGTERM),
    Told("SIGINT in a phase", signal.SIGINT),
    Told("SIGUSR2 in a phase", signal.SIGUSR2),
    CtrlC(),
    StandStill(),
    HelperKilled("W&B's service killed", "wandb-core", RUN, goes_on=True),
    HelperKilled("DataLoader worker killed", "qat-run", IMAGES, goes_on=False),
)

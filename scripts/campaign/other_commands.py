"""Atlases and reports: killed, twice in one folder, on a disk that is full."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from . import command
from .command import RUN, Ended, end, left_behind, remount, small_disk, start, undisturbed, unreadable
from .concurrency import turned_away
from .fault import Fault, Outcome

ATLAS = ("atlas.estimators=[tanh]", "atlas.optimizers=[sgd]", "atlas.seeds=[1,2]", "atlas.steps=40")
ATLAS_KILOBYTES, REPORT_KILOBYTES = (8, 130), (8, 500)  # a whole atlas takes 110, a report 400


def atlas(workplace: Path, output: Path) -> Ended:
    """In the foreground."""
    return command.run(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=workplace)


def complete(workplace: Path, output: Path, outcome: Outcome) -> None:
    """The same command again: it has to come to the cells of an atlas that nothing disturbs."""
    done, undisturbed_one = atlas(workplace, output), atlas(workplace, workplace / "undisturbed")
    outcome.broken += done.faults() + undisturbed_one.faults()
    if done.code:
        outcome.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    ours, theirs = (json.loads((folder / "atlas.json").read_text()) for folder in (output, workplace / "undisturbed"))
    outcome.differing += sum(a != b for a, b in zip(ours["cells"], theirs["cells"], strict=True))
    outcome.broken += unreadable(output) + (["numbers differ"] if outcome.differing else [])


@dataclass(frozen=True)
class AtlasKilled:
    """``kill -9`` to an atlas at any moment: its workers go too, and what is trained is not trained again."""

    name: str = "atlas killed"
    group: str = "processes"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        outcome, output = Outcome(), workplace / "atlas"
        process = start(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=workplace)
        time.sleep(draw.uniform(1, 12))
        process.send_signal(signal.SIGKILL)
        at = time.monotonic()
        end(process, at)
        outcome.broken += left_behind(workplace) + (unreadable(output) if output.exists() else [])
        outcome.delay = time.monotonic() - at
        complete(workplace, output, outcome)
        return outcome


@dataclass(frozen=True)
class SameAtlas:
    """The same atlas twice: the second stops and names the first."""

    name: str = "one atlas, two commands"
    group: str = "two at once"
    rounds: int = 3

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        output = workplace / "atlas"
        began = time.monotonic()
        first = start(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=workplace)
        while not (output / ".lock").exists() and first.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        second = atlas(workplace, output)
        done = end(first, began)
        outcome = Outcome(done.line, delay=second.seconds, broken=done.faults())
        outcome.broken += turned_away(second, "atlas.output", first.pid)
        complete(workplace, output, outcome)
        return outcome


@dataclass(frozen=True)
class AtlasOnSmallDisk:
    """A disk of a size that is drawn: one line; with room made, the same command goes on."""

    name: str = "atlas on a full disk"
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        with small_disk(workplace, draw.randint(*ATLAS_KILOBYTES)) as disk:
            done = atlas(workplace, disk / "atlas")
            outcome = Outcome(done.line, delay=done.seconds, broken=done.faults())
            remount(disk, "size=100m")
            complete(workplace, disk / "atlas", outcome)
        return outcome


@dataclass(frozen=True)
class ReportOnSmallDisk:
    """A report where there is no room for it: one line, and what was there before is whole; with room, all of it."""

    name: str = "report on a full disk"
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        source = undisturbed(*RUN)
        with small_disk(workplace, draw.randint(*REPORT_KILOBYTES)) as disk:
            (disk / "report.html").write_text("an earlier one</html>")
            done = command.run(str(source), "--output", str(disk), program="qat-report", cwd=workplace)
            outcome = Outcome(done.line, delay=done.seconds, broken=done.faults() + unreadable(disk))
            remount(disk, "size=100m")
            again = command.run(str(source), "--output", str(disk), program="qat-report", cwd=workplace)
            outcome.broken += again.faults() + unreadable(disk)
            outcome.broken += [again.line] if again.code else []
            outcome.broken += [f"{path.name} is left" for path in disk.glob(".*.tmp")]
        return outcome


OTHER_COMMANDS: tuple[Fault, ...] = (AtlasKilled(), SameAtlas(), AtlasOnSmallDisk(), ReportOnSmallDisk())

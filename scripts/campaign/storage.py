"""Disks that are full or read-only, folders that go away, writes that fail, files that are damaged between two runs."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import command
from .command import RUN, differing, end, phases, remount, small_disk, start, undisturbed, unreadable
from .fault import Fault, Outcome
from .processes import continued, look, survived

LEAST, MOST = 50, 9_000  # kB; a whole run takes 8,000


def _ended(done: command.Ended, folder: Path, reference: Path) -> Outcome:
    """The command came to its end, or to one clear line, and what was there before can be read."""
    outcome = Outcome(done.line, delay=done.seconds, broken=done.faults())
    if done.code == 0 and (folder / "results.json").exists():
        outcome.differing = differing(folder, reference)
    look(folder, reference, outcome)
    return outcome


@dataclass(frozen=True)
class SmallDisk:
    """A disk of a size that is drawn: full at some moment of the run. With room made, the same command continues."""

    name: str = "disk full"
    group: str = "storage"
    rounds: int = 8

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference = undisturbed(*RUN)
        with small_disk(workplace, round(LEAST * (MOST / LEAST) ** draw.random())) as disk:
            folder = disk / "run"
            outcome = _ended(command.run(*RUN, f"hydra.run.dir={folder}", cwd=workplace), folder, reference)
            remount(disk, "size=100m")
            continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class FileLimit:
    """No file may grow beyond a size that is drawn (RLIMIT_FSIZE), as with a quota."""

    name: str = "files limited in size"
    group: str = "storage"
    rounds: int = 8

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        size = round(1_000 * 4_000 ** draw.random())
        limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        done = command.run(*RUN, f"hydra.run.dir={folder}", cwd=workplace, preexec_fn=limited)
        outcome = _ended(done, folder, reference)
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class ReadOnly:
    """The disk is mounted read-only before the run, or at any moment of it."""

    name: str
    from_the_beginning: bool
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference = undisturbed(*RUN)
        with small_disk(workplace, 100_000) as disk:
            folder = disk / "run"
            if self.from_the_beginning:
                _read_only(disk)
            began = time.monotonic()
            process = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
            if not self.from_the_beginning:
                time.sleep(draw.uniform(0, phases(reference)["all"][0].seconds))
                _read_only(disk)
            outcome = _ended(end(process, began), folder, reference)
            remount(disk, "rw")
            continued(folder, reference, RUN, outcome)
        return outcome


def _read_only(disk: Path) -> None:
    """A disk with open files cannot be remounted, but what is mounted over it can."""
    remount(disk, "ro,bind")


@dataclass(frozen=True)
class Gone:
    """The run folder is removed, or gets another name, at any moment."""

    name: str
    renamed: bool
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder, aside = undisturbed(*RUN), workplace / "run", workplace / "aside"
        began = time.monotonic()
        process = start(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        while not folder.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, phases(reference)["all"][0].seconds))
        if self.renamed:
            folder.rename(aside)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        done = end(process, began)
        outcome = Outcome(done.line, delay=done.seconds, broken=done.faults())
        if self.renamed:
            outcome.broken += unreadable(aside)
            shutil.rmtree(folder, ignore_errors=True)  # what was written after
            aside.rename(folder)
            look(folder, reference, outcome)
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class FailsOnce:
    """One call of what writes a file fails, or three in a row do: no room."""

    name: str
    call: str
    most: int  # calls in a run
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        asked = {"log": str(workplace / "log"), "fail": self.call, "at": draw.randint(1, self.most)}
        asked["times"] = draw.choice([1, 3])
        done = command.run(*RUN, f"hydra.run.dir={folder}", cwd=workplace, orders=asked)
        outcome = _ended(done, folder, reference)
        if "failed" not in (workplace / "log").read_text():
            outcome.broken.append(f"no call number {asked['at']}")
        continued(folder, reference, RUN, outcome)
        return outcome


@dataclass(frozen=True)
class Damaged:
    """A file of a run that was cut off, or is done, is truncated or has a bit flipped; then the same command."""

    name: str
    file: str
    done: bool
    group: str = "storage"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder = undisturbed(*RUN), workplace / "run"
        if self.done:
            shutil.copytree(reference, folder)
        else:
            orders = {"log": str(workplace / "log"), "phase": "checkpoint", "occurrence": draw.randint(3, 20)}
            command.run(*RUN, f"hydra.run.dir={folder}", orders=orders | {"delay": 0.2, "signal": signal.SIGKILL})
        damage = draw.choice([cut, flip])
        damage(folder / self.file, draw)
        again = command.run(*RUN, f"hydra.run.dir={folder}", cwd=workplace)
        if again.code == 2 and "was made with" in again.err:  # a flipped bit in the configuration that is kept there
            return Outcome(again.line, broken=again.faults())
        if self.done and damage is flip and "finished already" in again.out:  # nobody can know that of a number
            return Outcome("survived", broken=again.faults())
        return survived(again, folder, reference)


def cut(path: Path, draw: random.Random) -> None:
    """Ends anywhere."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def flip(path: Path, draw: random.Random) -> None:
    """One bit is another."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


STORAGE: tuple[Fault, ...] = (
    SmallDisk(),
    FileLimit(),
    ReadOnly("disk read-only", from_the_beginning=True, rounds=1),
    ReadOnly("disk read-only at any moment", from_the_beginning=False),
    Gone("run folder removed", renamed=False),
    Gone("run folder renamed", renamed=True),
    FailsOnce("a checkpoint cannot be written", "qat_ste.experiment.checkpoint:torch.save", 24),
    FailsOnce("rows cannot be written", "qat_ste.loggers.files:RunFolder._append", 30),
    FailsOnce("status or results cannot be written", "qat_ste.loggers.files:write_json", 3),
    FailsOnce("figures or page cannot be written", "qat_ste.report.run.figures:write", 4),
    Damaged("checkpoint damaged", "checkpoint.pt", done=False),
    Damaged("metrics.jsonl damaged", "metrics.jsonl", done=False),
    Damaged("status.json damaged", "status.json", done=False),
    Damaged("results.json damaged", "results.json", done=True),
)

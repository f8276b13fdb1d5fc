"""Atlases twice in one folder, atlases and reports on a disk that is full."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from .command import start, until
from .concurrency import turned_away
from .fault import Fault, Trial
from .run_folder import unreadable
from .storage import remount, small_disk

ATLAS = ("atlas.estimators=[tanh]", "atlas.optimizers=[sgd]", "atlas.seeds=[1,2]", "atlas.steps=40")
ATLAS_KILOBYTES, REPORT_KILOBYTES = (8, 130), (8, 500)  # a whole atlas takes 110, a report 400


def atlas(trial: Trial, output: Path) -> subprocess.Popen[str]:
    return start(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=trial.workplace)


def finish_atlas(trial: Trial, output: Path) -> None:
    """The same command again comes to the cells of an atlas that nothing disturbs."""
    done = trial.end(atlas(trial, output))
    trial.end(atlas(trial, trial.workplace / "undisturbed"))
    if done.code:
        trial.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    ours, theirs = (_cells(folder) for folder in (output, trial.workplace / "undisturbed"))
    trial.differing += sum(a != b for a, b in zip(ours, theirs, strict=True))
    trial.broken += unreadable(output) + (["numbers differ"] if trial.differing else [])


def _cells(folder: Path) -> Any:
    return json.loads((folder / "atlas.json").read_text())["cells"]


def same_atlas(trial: Trial) -> None:
    """The same atlas twice: the second stops and names the first."""
    output = trial.workplace / "atlas"
    first = atlas(trial, output)
    until(first, (output / ".lock").exists)
    time.sleep(trial.draw.uniform(0, 1))
    moment = time.monotonic()
    second = trial.end(atlas(trial, output))
    trial.delay = time.monotonic() - moment
    trial.ended = trial.end(first).line
    turned_away(trial, second, "atlas.output", first.pid)
    finish_atlas(trial, output)


def atlas_on_small_disk(trial: Trial) -> None:
    """A disk of a size that is drawn: one line; with room made, the same command goes on."""
    with small_disk(trial.workplace, trial.draw.randint(*ATLAS_KILOBYTES)) as disk:
        trial.ended = trial.end(atlas(trial, disk / "atlas")).line
        remount(disk, "size=100m")
        finish_atlas(trial, disk / "atlas")


def report_on_small_disk(trial: Trial) -> None:
    """A report where there is no room for it: one line, and what was there before is whole; with room, all of it."""
    with small_disk(trial.workplace, trial.draw.randint(*REPORT_KILOBYTES)) as disk:
        (disk / "report.html").write_text("an earlier one</html>")
        report = (str(trial.reference), "--output", str(disk))
        trial.ended = trial.end(start(*report, program="qat-report", cwd=trial.workplace)).line
        trial.broken += unreadable(disk)
        remount(disk, "size=100m")
        again = trial.end(start(*report, program="qat-report", cwd=trial.workplace))
        trial.broken += unreadable(disk) + ([again.line] if again.code else [])
        trial.broken += [f"{path.name} is left" for path in disk.glob(".*.tmp")]


OTHER_COMMANDS: tuple[Fault, ...] = (
    Fault("one atlas, two commands", "two at once", same_atlas, rounds=3),
    Fault("atlas on a full disk", "storage", atlas_on_small_disk),
    Fault("report on a full disk", "storage", report_on_small_disk),
)

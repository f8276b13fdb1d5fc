"""Two commands use one run folder, sweep or atlas at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import Popen

from .command import RUN, Ended, phases, start, undisturbed, until
from .fault import Fault, Trial
from .run_folder import run_of_seed, unreadable

ATLAS = ("atlas.estimators=[tanh]", "atlas.optimizers=[sgd]", "atlas.seeds=[1,2]", "atlas.steps=40")


def check_rejected(trial: Trial, second: Ended, key: str, first: int) -> None:
    """Checks that the second command exits and names the process of the first."""
    if not (second.code == 2 and f"{key}=" in second.err and f"in use by process {first} on " in second.err):
        trial.broken.append(f"the second command ended with {second.code}: {second.line}")


def start_twice(trial: Trial, begin: Callable[[], Popen[str]], sign: Path, seconds: float, key: str) -> Ended:
    """Starts a command twice and checks that the second is rejected; returns the end of the first.

    Args:
        sign: file that the first command makes; the second starts at most ``seconds`` later.
        key: configuration key that the second command has to name.
    """
    first = begin()
    until(first, sign.exists)
    time.sleep(trial.draw.uniform(0, seconds))
    moment = time.monotonic()
    second = trial.end(begin())
    trial.delay = time.monotonic() - moment
    check_rejected(trial, second, key, first.pid)
    return trial.end(first)


def same_folder(trial: Trial) -> None:
    """Starts a run twice in one folder."""
    seconds = 0.5 * phases(trial.reference)["training"][0].seconds
    trial.survive(start_twice(trial, trial.start, trial.folder / "status.json", seconds, "hydra.run.dir"))


def started_together(trial: Trial) -> None:
    """Starts two commands together: one of them runs, the other is rejected."""
    both = [trial.start() for _ in range(2)]
    ends = [trial.end(process) for process in both]
    winner, loser = sorted(range(2), key=lambda number: ends[number].code)
    trial.survive(ends[winner])
    if "finished already" not in ends[loser].out:
        check_rejected(trial, ends[loser], "hydra.run.dir", both[winner].pid)


def same_sweep(trial: Trial) -> None:
    """Starts one sweep twice."""
    sweep = trial.workplace / "sweep"
    begin = partial(start, "-m", *RUN, "train.seed=1,2", f"hydra.sweep.dir={sweep}", cwd=trial.workplace)
    trial.ended = start_twice(trial, begin, sweep / ".lock", 4, "hydra.sweep.dir").line
    for seed in (1, 2):
        trial.compare(run_of_seed(sweep, seed), undisturbed(*RUN, f"train.seed={seed}"))


def atlas(trial: Trial, output: Path) -> Popen[str]:
    """Starts a small atlas in this folder."""
    return start(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=trial.workplace)


def finish_atlas(trial: Trial, output: Path) -> None:
    """Checks that the command, repeated, ends with the cells of an undisturbed atlas."""
    done = trial.end(atlas(trial, output))
    trial.end(atlas(trial, trial.workplace / "undisturbed"))
    if done.code:
        trial.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    folders = output, trial.workplace / "undisturbed"
    ours, theirs = (json.loads((folder / "atlas.json").read_text())["cells"] for folder in folders)
    trial.differing += sum(a != b for a, b in zip(ours, theirs, strict=True))
    trial.broken += unreadable(output) + (["numbers differ"] if trial.differing else [])


def same_atlas(trial: Trial) -> None:
    """Starts one atlas twice."""
    output = trial.workplace / "atlas"
    trial.ended = start_twice(trial, partial(atlas, trial, output), output / ".lock", 1, "atlas.output").line
    finish_atlas(trial, output)


CONCURRENCY: tuple[Fault, ...] = (
    Fault("one run folder, two commands", "two at once", same_folder),
    Fault("two commands started together", "two at once", started_together),
    Fault("one sweep, two commands", "two at once", same_sweep, rounds=3),
    Fault("one atlas, two commands", "two at once", same_atlas, rounds=3),
)

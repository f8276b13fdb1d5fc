"""The same run folder, sweep or atlas, twice at a time."""

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


def turned_away(trial: Trial, second: Ended, key: str, first: int) -> None:
    """The second command has to name the first."""
    if not (second.code == 2 and f"{key}=" in second.err and f"in use by process {first} on " in second.err):
        trial.broken.append(f"the second one ended with {second.code}: {second.line}")


def twice(trial: Trial, begin: Callable[[], Popen[str]], sign: Path, seconds: float, key: str) -> Ended:
    """The second command stops and names the first; how the first, which has to take no notice, ended.

    Args:
        sign: of the first one at work, after which the second starts within so many ``seconds``.
    """
    first = begin()
    until(first, sign.exists)
    time.sleep(trial.draw.uniform(0, seconds))
    moment = time.monotonic()
    second = trial.end(begin())
    trial.delay = time.monotonic() - moment
    turned_away(trial, second, key, first.pid)
    return trial.end(first)


def same_folder(trial: Trial) -> None:
    """The same run folder twice."""
    seconds = 0.5 * phases(trial.reference)["training"][0].seconds
    trial.survive(twice(trial, trial.start, trial.folder / "status.json", seconds, "hydra.run.dir"))


def started_together(trial: Trial) -> None:
    """Two commands started together: one runs, the other is turned away, whichever it is."""
    both = [trial.start() for _ in range(2)]
    ends = [trial.end(process) for process in both]
    winner, loser = sorted(range(2), key=lambda number: ends[number].code)
    trial.survive(ends[winner])
    if "finished already" not in ends[loser].out:
        turned_away(trial, ends[loser], "hydra.run.dir", both[winner].pid)


def same_sweep(trial: Trial) -> None:
    """The same sweep twice."""
    sweep = trial.workplace / "sweep"
    begin = partial(start, "-m", *RUN, "train.seed=1,2", f"hydra.sweep.dir={sweep}", cwd=trial.workplace)
    trial.ended = twice(trial, begin, sweep / ".lock", 4, "hydra.sweep.dir").line
    for seed in (1, 2):
        trial.compare(run_of_seed(sweep, seed), undisturbed(*RUN, f"train.seed={seed}"))


def atlas(trial: Trial, output: Path) -> Popen[str]:
    return start(*ATLAS, f"atlas.output={output}", program="qat-atlas", cwd=trial.workplace)


def finish_atlas(trial: Trial, output: Path) -> None:
    """The same command again comes to the cells of an atlas that nothing disturbs."""
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
    """The same atlas twice."""
    output = trial.workplace / "atlas"
    trial.ended = twice(trial, partial(atlas, trial, output), output / ".lock", 1, "atlas.output").line
    finish_atlas(trial, output)


CONCURRENCY: tuple[Fault, ...] = (
    Fault("one run folder, two commands", "two at once", same_folder),
    Fault("two commands started together", "two at once", started_together),
    Fault("one sweep, two commands", "two at once", same_sweep, rounds=3),
    Fault("one atlas, two commands", "two at once", same_atlas, rounds=3),
)

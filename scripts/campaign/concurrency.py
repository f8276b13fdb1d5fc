"""The same run folder, or the same sweep, twice at a time."""

from __future__ import annotations

import time

from .command import RUN, Ended, phases, start, undisturbed, until
from .fault import Fault, Trial
from .run_folder import run_of_seed

SWEEP = ("-m", *RUN, "train.seed=1,2")


def turned_away(trial: Trial, second: Ended, key: str, first: int) -> None:
    """The second command has to name the first."""
    if not (second.code == 2 and f"{key}=" in second.err and f"in use by process {first} on " in second.err):
        trial.broken.append(f"the second one ended with {second.code}: {second.line}")


def same_folder(trial: Trial) -> None:
    """The same run folder twice: the second stops and names the first, the first does not notice."""
    training = phases(trial.reference)["training"][0]
    first = trial.start()
    until(first, (trial.folder / "status.json").exists)
    time.sleep(trial.draw.uniform(0, 0.5 * training.seconds))
    moment = time.monotonic()
    second = trial.run()
    trial.delay = time.monotonic() - moment
    trial.survive(trial.end(first))
    turned_away(trial, second, "hydra.run.dir", first.pid)


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
    arguments = (*SWEEP, f"hydra.sweep.dir={sweep}")
    first = start(*arguments, cwd=trial.workplace)
    until(first, (sweep / ".lock").exists)
    time.sleep(trial.draw.uniform(0, 4))
    moment = time.monotonic()
    second = trial.end(start(*arguments, cwd=trial.workplace))
    trial.delay = time.monotonic() - moment
    trial.ended = trial.end(first).line
    turned_away(trial, second, "hydra.sweep.dir", first.pid)
    for seed in (1, 2):
        trial.compare(run_of_seed(sweep, seed), undisturbed(*RUN, f"train.seed={seed}"))


CONCURRENCY: tuple[Fault, ...] = (
    Fault("one run folder, two commands", "two at once", same_folder),
    Fault("two commands started together", "two at once", started_together),
    Fault("one sweep, two commands", "two at once", same_sweep, rounds=3),
)

"""Runs of several ranks and sweeps on several workers: of which one dies, or the one that started them."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from . import command
from .command import RUN, differing, end, left_behind, start, undisturbed, unreadable
from .fault import Fault, Outcome
from .processes import continued, look

TWO_RANKS: tuple[str, ...] = (
    *RUN,
    "runtime.devices=2",
    "runtime.device=cpu",
    "train.steps=400",
    "train.steps_per_epoch=100",
)


@dataclass(frozen=True)
class RankKilled:
    """``kill -9`` to one rank of two, or to the process that started them, once there is a checkpoint."""

    name: str
    victim: str  # rank 0, rank 1, the launching process
    group: str = "processes"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference, folder, outcome = undisturbed(*TWO_RANKS), workplace / "run", Outcome()
        began = time.monotonic()
        main = start(*TWO_RANKS, f"hydra.run.dir={folder}", cwd=workplace)
        while not (folder / "checkpoint.pt").exists() and main.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
        ranks = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        victim = main.pid if self.victim == "the launching process" else int(ranks[int(self.victim[-1])])
        at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        done = end(main, began)
        outcome.broken += left_behind(workplace, 30.0)
        outcome.delay = time.monotonic() - at
        if victim != main.pid:
            outcome.ended = done.line
            outcome.broken += done.faults()
            status = json.loads((folder / "status.json").read_text())
            expected = f"{self.victim} was killed by SIGKILL"
            if expected not in done.err or expected not in str(status["error"]) or done.code != 1:
                outcome.broken.append(f"does not name the rank: {done.code}: {done.line}")
        if outcome.delay > 30:
            outcome.broken.append("took more than 30 s to end")
        look(folder, reference, outcome)
        continued(folder, reference, TWO_RANKS, outcome)
        return outcome


@dataclass(frozen=True)
class SweepEnded:
    """A sweep on two workers loses the process that runs it, or is told to end by Ctrl-C: nobody is left behind."""

    name: str
    number: int
    group: str = "processes"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        outcome = Outcome()
        sweep: tuple[str, ...] = ("-m", *RUN, "hydra/launcher=laptop", "hydra.launcher.n_jobs=2", "train.seed=1,2,3,4")
        sweep += (f"hydra.sweep.dir={workplace / 'sweep'}", "train.steps=400")
        main = start(*sweep, cwd=workplace)
        while not list(workplace.glob("sweep/*/job.json")) and main.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.uniform(3, 12))
        began = at = time.monotonic()
        (os.kill if self.number == signal.SIGKILL else os.killpg)(main.pid, self.number)
        ended = end(main, began)
        outcome.broken += left_behind(workplace, 30.0)
        outcome.delay = time.monotonic() - at
        if self.number != signal.SIGKILL:
            outcome.broken += ended.faults()
        done = command.run(*sweep, cwd=workplace)
        outcome.broken += done.faults()
        if done.code:
            outcome.broken.append(f"the same command ends with {done.code}: {done.line}")
            return outcome
        for seed in range(1, 5):
            reference = undisturbed(*RUN, "train.steps=400", f"train.seed={seed}")
            folder = command.run_of_seed(workplace / "sweep", seed)
            outcome.differing += differing(folder, reference)
            outcome.broken += unreadable(folder)
        outcome.broken += ["numbers differ"] if outcome.differing else []
        return outcome


SEVERAL: tuple[Fault, ...] = (
    RankKilled("rank 0 of two killed", "rank 0"),
    RankKilled("rank 1 of two killed", "rank 1"),
    RankKilled("launcher of two ranks killed", "the launching process"),
    SweepEnded("launcher of a sweep killed", signal.SIGKILL),
    SweepEnded("sweep on workers told by Ctrl-C", signal.SIGINT),
)

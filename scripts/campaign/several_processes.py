"""Runs of several ranks and sweeps on several workers: one process dies, or the one that started the others."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

from .command import RUN, end, start, undisturbed, until
from .fault import Fault, Trial
from .run_folder import run_of_seed

TWO_RANKS = (*RUN, "runtime.devices=2", "runtime.device=cpu", "train.steps=400", "train.steps_per_epoch=100")
LAUNCHER = "the launching process"


def kill_rank(trial: Trial, victim: str) -> None:
    """``kill -9`` to one rank of two, or to the process that started them, once there is a checkpoint."""
    main = trial.start()
    until(main, (trial.folder / "checkpoint.pt").exists)
    time.sleep(trial.draw.uniform(0, 1.5))
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    ranks = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    moment = time.monotonic()
    os.kill(main.pid if victim == LAUNCHER else int(ranks[int(victim[-1])]), signal.SIGKILL)
    done = end(main)
    trial.stopped(moment)
    if victim != LAUNCHER:
        trial.ended = done.line
        trial.broken += done.faults()
        expected, status = f"{victim} was killed by SIGKILL", json.loads((trial.folder / "status.json").read_text())
        if expected not in done.err or expected not in str(status["error"]) or done.code != 1:
            trial.broken.append(f"does not name the rank: {done.code}: {done.line}")
    trial.look()
    trial.finish()


def end_sweep(trial: Trial, number: int) -> None:
    """A sweep on two workers loses the process that runs it, or is told to end by Ctrl-C: no process is left behind."""
    sweep = ("-m", *RUN, "hydra/launcher=laptop", "hydra.launcher.n_jobs=2", "train.seed=1,2,3,4", "train.steps=400")
    place = f"hydra.sweep.dir={trial.workplace / 'sweep'}"
    main = start(*sweep, place, cwd=trial.workplace)
    until(main, lambda: list(trial.workplace.glob("sweep/*/job.json")))
    time.sleep(trial.draw.uniform(3, 12))
    moment = time.monotonic()
    (os.kill if number == signal.SIGKILL else os.killpg)(main.pid, number)
    ended = end(main)
    trial.stopped(moment)
    if number != signal.SIGKILL:
        trial.broken += ended.faults()
    done = trial.end(start(*sweep, place, cwd=trial.workplace))
    if done.code:
        trial.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    for seed in range(1, 5):
        reference = undisturbed(*RUN, "train.steps=400", f"train.seed={seed}")
        trial.compare(run_of_seed(trial.workplace / "sweep", seed), reference)


SEVERAL: tuple[Fault, ...] = (
    Fault("rank 0 of two killed", "processes", partial(kill_rank, victim="rank 0"), arguments=TWO_RANKS),
    Fault("rank 1 of two killed", "processes", partial(kill_rank, victim="rank 1"), arguments=TWO_RANKS),
    Fault("launcher of two ranks killed", "processes", partial(kill_rank, victim=LAUNCHER), arguments=TWO_RANKS),
    Fault("launcher of a sweep killed", "processes", partial(end_sweep, number=signal.SIGKILL)),
    Fault("sweep on workers told by Ctrl-C", "processes", partial(end_sweep, number=signal.SIGINT)),
)

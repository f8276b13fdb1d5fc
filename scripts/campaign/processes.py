"""Kill processes or ask them to stop: in every phase of a run, ranks, and sweeps on several workers."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from .command import RUN, end, phases, start, undisturbed, until
from .fault import Fault, Trial
from .run_folder import processes, run_of_seed

EARLY = ("start", "data", "W&B's start", "training", "checkpoint", "evaluation")
LATE = ("results", "figures", "page")
LAST = ("W&B's end",)  # after the run is done
SHARED = Path(os.environ.get("QAT_STE_SHARED", "../shared")).resolve()
IMAGES = (
    *(*RUN, "dataset=imagenet", "dataset.image_size=32", "dataset.workers=2", "train.epochs=1"),
    *("train.steps_per_epoch=60", "train.batch_size=16", f"paths.data={SHARED / 'data' / 'imagenet-sample'}"),
)
TWO_RANKS = (*RUN, "runtime.devices=2", "runtime.device=cpu", "train.steps=400", "train.steps_per_epoch=100")
LAUNCHER = "the launching process"


def orders(reference: Path, phase: str, draw: random.Random, number: int, log: Path) -> dict[str, Any]:
    """Returns the agent's orders to send a signal once, at a random moment of a phase."""
    occurrences = phases(reference)[phase]
    occurrence = draw.randint(1, min(len(occurrences), 3))  # a continued run has fewer left
    delay = draw.uniform(0, 0.8 * occurrences[occurrence - 1].seconds) if phase != "training" else draw.uniform(0, 0.3)
    return {"log": str(log), "phase": phase, "occurrence": occurrence, "delay": delay, "signal": number}


def struck(log: Path) -> tuple[float, str]:
    """Returns the moment and the phase in which the signal took effect."""
    for line in log.read_text().splitlines():
        moment, what, phase = line.split(" ", 2)
        if what == "struck":
            return float(moment), phase
    return math.inf, "missed"


def kill(trial: Trial) -> None:
    """Kills one run with ``kill -9`` once in each phase, and continues it after each."""
    for phase in (*trial.draw.sample(EARLY, len(EARLY)), *trial.draw.sample(LATE, len(LATE)), *LAST):
        log = trial.workplace / f"{phase}.log"
        done = trial.run(orders=orders(trial.reference, phase, trial.draw, signal.SIGKILL, log))
        trial.counts[struck(log)[1]] += done.code == -signal.SIGKILL
        trial.check_files()
    trial.check_stopped(time.monotonic())
    trial.finish()


def signal_in_a_phase(trial: Trial, number: int) -> None:
    """Sends a signal that asks the run to end, in a random phase."""
    log = trial.workplace / "phases.log"
    phase = trial.draw.choice(EARLY + LATE + LAST)
    done = trial.run(orders=orders(trial.reference, phase, trial.draw, number, log))
    if done.code not in (0, 128 + number, -number):
        trial.broken.append(f"exit code {done.code}")
    moment, phase = struck(log)
    trial.check_stopped(moment)
    trial.counts[phase] += 1
    trial.check_files()
    trial.finish()


def ctrl_c(trial: Trial) -> None:
    """Sends SIGINT to every process of the group, as Ctrl-C does, once or twice at a random moment."""
    seconds = phases(trial.reference)["all"][0].seconds
    process = trial.start()
    time.sleep(trial.draw.uniform(0.3, seconds))  # earlier, Python is still starting
    moment = time.monotonic()
    for _ in range(trial.draw.choice([1, 2])):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
    done = trial.end(process)
    if done.code not in (0, 130, -2):
        trial.broken.append(f"exit code {done.code}")
    trial.check_stopped(moment)
    trial.check_files()
    trial.finish()


def kill_helper(trial: Trial, command: str, continues: bool) -> None:
    """Kills a process that the run has started. The run continues, or ends with a line and can be resumed."""
    by_name = phases(trial.reference)
    main = trial.start()

    def helpers() -> list[int]:
        return [number for number, line in processes(trial.workplace) if command in line and number != main.pid]

    victims = until(main, helpers)
    time.sleep(trial.draw.uniform(0, max(0.1, by_name["all"][0].seconds - by_name["training"][0].begin)))
    moment = time.monotonic()
    for victim in victims[:1]:
        if main.poll() is None and Path(f"/proc/{victim}").exists():
            os.kill(victim, signal.SIGKILL)
    done = trial.end(main)
    trial.check_stopped(moment)
    if continues or not done.code:
        trial.survive(done)
    else:
        trial.end_clearly(done)
        trial.finish()


def kill_rank(trial: Trial, victim: str) -> None:
    """Kills one rank of two, or the process that started them, once a checkpoint exists."""
    main = trial.start()
    until(main, (trial.folder / "checkpoint.pt").exists)
    time.sleep(trial.draw.uniform(0, 1.5))
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()
    ranks = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    moment = time.monotonic()
    os.kill(main.pid if victim == LAUNCHER else int(ranks[int(victim[-1])]), signal.SIGKILL)
    done = end(main)
    trial.check_stopped(moment)
    if victim != LAUNCHER:
        trial.ended = done.line
        trial.broken += done.faults()
        expected, status = f"{victim} was killed by SIGKILL", json.loads((trial.folder / "status.json").read_text())
        if expected not in done.err or expected not in str(status["error"]) or done.code != 1:
            trial.broken.append(f"does not name the rank: {done.code}: {done.line}")
    trial.check_files()
    trial.finish()


def end_sweep(trial: Trial, number: int) -> None:
    """Kills the launcher of a sweep on two workers, or sends Ctrl-C. No process may stay behind."""
    sweep = ("-m", *RUN, "hydra/launcher=laptop", "hydra.launcher.n_jobs=2", "train.seed=1,2,3,4", "train.steps=400")
    place = f"hydra.sweep.dir={trial.workplace / 'sweep'}"
    main = start(*sweep, place, cwd=trial.workplace)
    until(main, lambda: list(trial.workplace.glob("sweep/*/job.json")))
    time.sleep(trial.draw.uniform(3, 12))
    moment = time.monotonic()
    (os.kill if number == signal.SIGKILL else os.killpg)(main.pid, number)
    ended = end(main)
    trial.check_stopped(moment)
    if number != signal.SIGKILL:
        trial.broken += ended.faults()
    done = trial.end(start(*sweep, place, cwd=trial.workplace))
    if done.code:
        trial.broken.append(f"the same command ends with {done.code}: {done.line}")
        return
    for seed in range(1, 5):
        reference = undisturbed(*RUN, "train.steps=400", f"train.seed={seed}")
        trial.compare(run_of_seed(trial.workplace / "sweep", seed), reference)


PROCESSES: tuple[Fault, ...] = (
    Fault("kill -9 in each phase", "processes", kill, rounds=24),
    Fault("SIGTERM in a phase", "processes", partial(signal_in_a_phase, number=signal.SIGTERM), rounds=8),
    Fault("SIGINT in a phase", "processes", partial(signal_in_a_phase, number=signal.SIGINT), rounds=8),
    Fault("SIGUSR2 in a phase", "processes", partial(signal_in_a_phase, number=signal.SIGUSR2), rounds=8),
    Fault("Ctrl-C, once or twice", "processes", ctrl_c, rounds=12),
    Fault("W&B's service killed", "processes", partial(kill_helper, command="wandb-core", continues=True), rounds=10),
    Fault(
        "DataLoader worker killed", "processes", partial(kill_helper, command="qat-run", continues=False), 10, IMAGES
    ),
    Fault("rank 0 of two killed", "processes", partial(kill_rank, victim="rank 0"), arguments=TWO_RANKS),
    Fault("rank 1 of two killed", "processes", partial(kill_rank, victim="rank 1"), arguments=TWO_RANKS),
    Fault("launcher of two ranks killed", "processes", partial(kill_rank, victim=LAUNCHER), arguments=TWO_RANKS),
    Fault("launcher of a sweep killed", "processes", partial(end_sweep, number=signal.SIGKILL)),
    Fault("sweep on workers, Ctrl-C", "processes", partial(end_sweep, number=signal.SIGINT)),
)

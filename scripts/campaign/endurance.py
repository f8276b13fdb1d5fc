"""Long runs and long files: memory, file handles and threads stay as they are."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from .command import start
from .fault import Fault, Outcome

SETTLED = 1_000  # steps after which nothing may grow any more
SAMPLES = 100  # that are kept of a run, evenly over its steps
ROOM = 24 * 2**20  # bytes that memory may vary by: a checkpoint being written, change events that wait (12 MB a member)
ROW_BYTES = 5_000  # that a row may cost beside: 800 of its text, the others while a checkpoint is written
_PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [*map(str, Path(__file__).parents[1:3]), *sys.path]))}


def tiny(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """36 quantized weights: the steps of a run cost as little as they can."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(16, num_classes)
    )


@dataclass(frozen=True)
class Sample:
    """What a process holds after so many steps. ``memory``: resident bytes."""

    step: int
    memory: int
    handles: int
    threads: int


@dataclass(frozen=True)
class LongRun:
    """So many steps of the real command on a tiny network, with checkpoints. ``every``: steps between rows."""

    name: str
    steps: int = 100_000
    every: int | None = None
    group: str = "endurance"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        run, began = workplace / "run", time.monotonic()
        process = start(*self._arguments(workplace, run), cwd=workplace, environment=_PATH, stdout=subprocess.DEVNULL)
        samples = list(_samples(process.pid, run, lambda: process.poll() is None))
        error = process.communicate()[1].strip()
        if process.returncode:
            return Outcome(f"exit code {process.returncode}", broken=[error[-300:]])
        with (run / "metrics.jsonl").open(encoding="utf-8") as file:
            rows = sum("reference/train_loss" in line for line in file)
        outcome = judged(samples, rows / self.steps)
        outcome.delay = time.monotonic() - began
        if rows != math.ceil(self.steps / (self.every or self.steps // 200)):
            outcome.broken.append(f"{rows} rows")
        return outcome

    def _arguments(self, workplace: Path, run: Path) -> list[str]:
        conf = workplace / "conf" / "model"
        conf.mkdir(parents=True)
        (conf / "tiny.yaml").write_text(f"_target_: {__name__}.tiny\n_partial_: true\n", encoding="utf-8")
        return [
            "--config-dir", str(conf.parent), "model=tiny", "logger=none",
            f"hydra.run.dir={run}", f"train.steps={self.steps}", "train.batch_size=16", "train.steps_per_epoch=1000",
            "counterparts=[ste,jitter]", f"metrics.every={self.every or 'null'}", "runtime.threads=1",
            f"checkpoint.every_steps={self.steps // 20}",
        ]  # fmt: skip


def judged(samples: Sequence[Sample], rows_a_step: float) -> Outcome:
    """Whether nothing grew once the run was settled; with figures and some of the samples."""
    outcome = Outcome()
    settled = [sample for sample in samples if sample.step >= SETTLED]
    if len(settled) < 3:
        outcome.broken.append(f"only {len(settled)} samples after {SETTLED} steps")
        return outcome
    first = settled[0]
    rows = [rows_a_step * (sample.step - first.step) for sample in settled]
    growth = max(sample.memory - first.memory - ROW_BYTES * count for sample, count in zip(settled, rows, strict=True))
    slope = np.polyfit([sample.step for sample in settled], [sample.memory for sample in settled], 1)[0]
    handles, threads = ({getattr(sample, what) for sample in settled} for what in ("handles", "threads"))
    if growth > ROOM:
        outcome.broken.append(f"memory grew by {growth / 2**20:.0f} MiB beside the rows after {SETTLED} steps")
    if max(handles) > min(handles) + 2:  # a checkpoint and its temporary file
        outcome.broken.append(f"{min(handles)} to {max(handles)} file handles")
    if len(threads) > 1:
        outcome.broken.append(f"{min(threads)} to {max(threads)} threads")
    outcome.figures |= {
        "memory after 1,000 steps (MiB)": first.memory / 2**20,
        "highest memory (MiB)": max(sample.memory for sample in settled) / 2**20,
        "growth (bytes a step)": float(slope),
        "open files": float(max(handles)),
        "threads": float(max(threads)),
    }
    for sample in samples[:: max(1, len(samples) // SAMPLES)]:
        outcome.figures |= {
            f"{what} at {sample.step}": float(getattr(sample, what)) for what in ("memory", "handles", "threads")
        }
    return outcome


def _samples(pid: int, run: Path, alive: Callable[[], bool]) -> Iterator[Sample]:
    """One for each step that is told anew, while the process lives and trains."""
    step, process = -1, Path("/proc") / str(pid)
    while alive():
        time.sleep(0.2)
        told = _last_step(run / "metrics.jsonl")
        if told == step or (run / "results.json").exists():  # figures and page are drawn then, which takes more
            continue
        step = told
        try:
            memory = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            handles, threads = (sum(1 for _ in (process / what).iterdir()) for what in ("fd", "task"))
        except OSError:  # it has just ended
            return
        yield Sample(step, memory, handles, threads)


def _last_step(metrics: Path) -> int:
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 4096))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError, TypeError):
        return 0


ENDURANCE: tuple[Fault, ...] = (
    LongRun("100,000 steps"),
    LongRun("100,000 steps, a row at each", every=1),
)

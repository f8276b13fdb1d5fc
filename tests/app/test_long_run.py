"""Memory, open files and threads of a long run stay as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from tests.conftest import ROOT

MIB = 2**20
SETTLED = 1_000  # steps after which nothing may grow any more
ROOM = 24 * MIB  # bytes that memory may vary by: a checkpoint being written, change events that wait (12 MB a member)
ROW_BYTES = 5_000  # that a row may cost beside: 800 of its text, the others while a checkpoint is written
STEPS = 4_000


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


def growth(samples: Sequence[Sample], rows_a_step: float) -> list[str]:
    """What grew after ``SETTLED`` steps."""
    settled = [sample for sample in samples if sample.step >= SETTLED]
    if len(settled) < 3:
        return [f"only {len(settled)} samples after {SETTLED} steps"]
    first, found = settled[0], []
    beside = max(s.memory - first.memory - ROW_BYTES * rows_a_step * (s.step - first.step) for s in settled)
    handles, threads = ({getattr(sample, what) for sample in settled} for what in ("handles", "threads"))
    if beside > ROOM:
        found.append(f"memory grew by {beside / MIB:.0f} MiB")
    if max(handles) > min(handles) + 2:  # a checkpoint and its temporary file
        found.append(f"{min(handles)} to {max(handles)} file handles")
    if len(threads) > 1:
        found.append(f"{min(threads)} to {max(threads)} threads")
    return found


def watched(process: subprocess.Popen, run: Path) -> Iterator[Sample]:
    """A sample for each step that appears in the run's rows, as long as the process trains."""
    step, proc = -1, Path("/proc") / str(process.pid)
    while process.poll() is None:
        time.sleep(0.2)
        written = last_step(run / "metrics.jsonl")
        if written == step or (run / "results.json").exists():  # figures and page are drawn then, which takes more
            continue
        step = written
        try:
            memory = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            handles, threads = (len(list((proc / what).iterdir())) for what in ("fd", "task"))
        except OSError:  # it has just ended
            return
        yield Sample(step, memory, handles, threads)


def last_step(metrics: Path) -> int:
    try:
        return int(json.loads(metrics.read_bytes().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


@pytest.mark.slow
def test_a_long_run_holds_no_more_than_a_short_one(tmp_path):
    run, conf = tmp_path / "run", tmp_path / "conf" / "model"
    conf.mkdir(parents=True)
    (conf / "tiny.yaml").write_text(f"_target_: {__name__}.tiny\n_partial_: true\n")
    arguments = [
        "--config-dir", str(conf.parent), "model=tiny", "logger=none", f"hydra.run.dir={run}", f"train.steps={STEPS}",
        "train.batch_size=16", "train.steps_per_epoch=1000", "counterparts=[ste,jitter]", "runtime.threads=1",
        "metrics.every=1", f"checkpoint.every_steps={STEPS // 20}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "qat_ste.app.run_cli", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    samples = list(watched(process, run))
    assert process.wait() == 0, process.stderr.read()
    rows = sum("reference/train_loss" in line for line in (run / "metrics.jsonl").read_text().splitlines())
    assert rows == STEPS
    assert growth(samples, rows / STEPS) == []


def made(memory=lambda step: 0.0, handles=lambda step: 8, threads=lambda step: 3) -> list[Sample]:
    steps = range(0, 100_001, 500)
    return [Sample(step, int(300 * MIB + memory(step)), handles(step), threads(step)) for step in steps]


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (made(), []),
        (made(memory=lambda step: 60 * MIB * min(1, step / 1000)), []),
        (made(memory=lambda step: 1000 * step), ["memory grew by 93 MiB"]),
        (made(handles=lambda step: 8 + step // 10_000), ["8 to 18 file handles"]),
        (made(threads=lambda step: 3 + step // 90_000), ["3 to 4 threads"]),
        (made()[:3], ["only 1 samples after 1000 steps"]),
    ],
)
def test_what_grows_is_found(samples, found):
    assert growth(samples, rows_a_step=1 / 500) == found

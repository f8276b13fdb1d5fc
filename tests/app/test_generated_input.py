"""Wrong values made from every key of the configuration: refused in one line before any training, or accepted."""

from __future__ import annotations

import random
import re
import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest

from qat_ste.experiment.lockstep import Lockstep
from tests.app import wrong_values
from tests.app.wrong_values import Input, drawn
from tests.conftest import command

SLOWEST = 60  # seconds on the clock to do anything at all
ROOM = 6 << 30  # bytes that a wrong value may have the command ask for
LONGEST_LINE = 1500
SHORT = ("train.steps=2", "metrics.every=1", "counterparts=[ste]", "logger=none")
MOST_IMAGES = 1000  # times members, of a training that is short enough to be tried
GIVEN = Input((), "train.steps", "-1")


@dataclass(frozen=True)
class Done:
    """How the command ended; ``steps``: of training."""

    code: int
    out: str
    err: str
    steps: int = 0


class Hung(BaseException):
    """A call took longer than ``SLOWEST`` seconds."""


@contextmanager
def bounded() -> Iterator[None]:
    """No more time and memory than a wrong value may take."""

    def hung(_: int, frame: FrameType | None) -> None:
        raise Hung("".join(traceback.format_stack(frame, 4)))

    before, (soft, hard) = signal.signal(signal.SIGALRM, hung), resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    signal.alarm(SLOWEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(*arguments: str) -> Done:
    """The command in this process; whatever it raises ends up in ``err`` as a traceback."""
    steps, step = [], Lockstep.step

    def counted(*given: Any) -> Any:
        steps.append(given[1])
        return step(*given)

    with patch.object(Lockstep, "step", counted):
        try:
            with bounded():
                done = command(*arguments)
        except (Exception, Hung):
            return Done(1, "", traceback.format_exc(), len(steps))
    return Done(done.code, done.out, done.err, len(steps))


def refusal_faults(given: Input, done: Done) -> list[str]:
    """What is wrong with a refusal, which has to be one line that names the key and says what is allowed."""
    lines = done.err.splitlines()
    if len(lines) != 1:
        return [f"{len(lines)} lines: " + " | ".join(line[:200] for line in lines[:3])]
    found = []
    named = lines[0].removeprefix("qat-run: ").lstrip("'").partition("=")[0]
    if not (named and f"{given.key}.".startswith(f"{named}.")):
        found.append(f"names another key: {lines[0][:300]}")
    if not re.search("for example|allowed|must", lines[0]):
        found.append(f"does not say what is allowed: {lines[0][:300]}")
    if len(lines[0]) > LONGEST_LINE:
        found.append(f"floods the terminal with {len(done.err)} characters")
    if done.steps:
        found.append(f"refused after {done.steps} steps of training")
    return found


def description_faults(given: Input, done: Done) -> list[str]:
    """What is wrong with a dry run, which has to refuse the input or to describe the run."""
    if "Traceback" in done.err:
        return [f"traceback: {done.err.splitlines()[-1][:300]}"]
    if done.code == 2:
        return refusal_faults(given, done)
    if done.code or "members x" not in done.out:
        return [f"exit code {done.code}, no run described: {done.err[:300]}"]
    return []


def training_faults(given: Input, done: Done, folder: Path) -> list[str]:
    """What is wrong with a run, which has to refuse the input, to train, or to end with one clear line."""
    status = folder / "status.json"
    if "Traceback" in done.err:
        return [f"traceback: {done.err.splitlines()[-1][:300]}"]
    if done.code == 2:
        begun = ["refused after training had begun"] if (folder / "metrics.jsonl").exists() else []
        return refusal_faults(given, done) + begun
    if done.code == 0:
        return [] if (folder / "results.json").exists() else ["trained, but there is no results.json"]
    failed = status.exists() and '"failed"' in status.read_text()
    lines = [line for line in done.err.splitlines() if line.strip()]
    return [] if failed and len(lines) == 1 else [f"exit code {done.code} with {len(lines)} lines: {done.err[:300]}"]


def trainable(done: Done) -> bool:
    """Whether the run described is short enough to be tried."""
    work = re.search(r"# (\d+) members x (\d+) steps of (\d+)$", done.out.strip())
    return bool(work) and int(work[1]) * int(work[2]) * int(work[3]) <= MOST_IMAGES


def try_wrong_values(folder: Path, seed: int, count: int, most_trained: int) -> int:
    """Dry runs with wrong values, of which some that are accepted are trained; how many were refused."""
    faults, refused, trained = [], 0, 0
    run("dry_run=true", "logger=none")  # imports what is imported late
    for number, given in enumerate(drawn(random.Random(seed), count)):
        done = run(*SHORT, *given.overrides, "dry_run=true")
        found = description_faults(given, done)
        if done.steps:
            found.append("training has begun")
        if not done.code and trained < most_trained and trainable(done):
            own = folder / f"run{number}"
            found += training_faults(given, run(*SHORT, *given.overrides, f"hydra.run.dir={own}"), own)
            trained += 1
        refused += done.code == 2
        faults += [f"{given}: {fault}" for fault in found]
    assert faults == []
    return refused


@pytest.mark.slow
def test_wrong_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = try_wrong_values(tmp_path, seed=9, count=20, most_trained=1)
    assert 10 <= refused <= 20


def test_values_are_made_from_every_key():
    made = [
        given for group in wrong_values.groups() for given in wrong_values.inputs(group, wrong_values.choices(group)[0])
    ]
    keys = {given.key for given in made}
    assert {
        "train.steps",
        "quantizer.levels",
        "paths.output",
        "counterparts",
        "estimator.s",
        "dataset._target_",
    } <= keys
    assert len(made) > 1000


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        (Done(2, "", "qat-run: train.steps=-1: must be 1; for example train.steps=1\n"), None),
        (Done(0, "qat-run  # 4 members x 1 steps of 64\n", ""), None),
        (Done(0, "", ""), "no run described"),
        (Done(1, "", "Traceback (most recent call last):\nOops\n"), "traceback: Oops"),
        (Done(2, "", "qat-run: train.epochs=-1: must be 1\n"), "names another key"),
        (Done(2, "", "qat-run: train.steps=-1: Error merging\n"), "does not say what is allowed"),
        (Done(2, "", f"qat-run: train.steps={'x' * 2000}: must be 1\n"), "floods the terminal"),
        (Done(2, "", "qat-run: train.steps=-1: must be 1\nagain\n"), "2 lines"),
        (Done(2, "", "qat-run: train.steps=-1: must be 1\n", steps=3), "refused after 3 steps"),
    ],
)
def test_what_does_not_hold_is_seen(done, fault):
    found = description_faults(GIVEN, done)
    assert [fault in one for one in found] == [True] if fault else not found


def test_a_training_that_leaves_nothing_is_seen(tmp_path):
    assert training_faults(GIVEN, Done(0, "", ""), tmp_path) == ["trained, but there is no results.json"]
    assert "exit code 1 with 0 lines" in training_faults(GIVEN, Done(1, "", ""), tmp_path)[0]

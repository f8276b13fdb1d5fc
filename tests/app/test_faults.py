"""One fault of each group of the campaign; scripts/faults.py runs all of them."""

from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.campaign.fault import Fault, Trial
from scripts.campaign.storage import CALLS
from tests.conftest import ROOT

GROUPS = {"processes", "storage", "two at once", "surroundings"}


def faults(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT)


@pytest.mark.slow
def test_requirements_hold_after_a_fault_of_each_group():
    """Running all faults is the campaign itself, which leaves a record."""
    names = [line.rpartition(" (")[0] for line in faults("--list").stdout.splitlines()]
    assert {name.partition(":")[0] for name in names} == GROUPS
    words = ("SIGTERM in", "checkpoint cannot", "one run folder", "no home")
    done = faults("--rounds", "1", "--seed", "1", "--only", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = [name for name in names if any(word in name for word in words)]
    assert {name.partition(":")[0] for name in chosen} == GROUPS
    assert all(any(line.startswith(f"{name}: ") for line in done.stdout.splitlines()) for name in chosen)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["kill -9", "disk full", "one run folder", "no home"])
def test_only_selects_faults_by_name(word):
    listed = faults("--list", "--only", word).stdout
    assert word in listed
    assert len(listed.splitlines()) < 5


def test_a_line_sums_the_rounds():
    trials = [Trial(Path(), random.Random(0)) for _ in range(3)]
    for trial, lost in zip(trials, range(3)):
        trial.lost_rows, trial.delay = lost, float(lost)
        trial.counts["training"] += lost
    trials[1].ended = trials[2].ended = "No space left on device"
    trials[2].broken.append("rows are lost")
    line = Fault("disk full", "storage", lambda trial: None).line(trials)
    assert line == {
        "name": "disk full", "group": "storage", "rounds": 3, "survived": 1, "lost_rows": 3, "differing": 0, "delay": 2.0,
        "ended": ["No space left on device"], "counts": {"training": 3}, "broken": ["rows are lost"],
    }  # fmt: skip


def test_functions_that_the_campaign_hooks_exist():
    agent = runpy.run_path(str(ROOT / "scripts" / "campaign" / "agent" / "sitecustomize.py"))
    for place in (*agent["PHASES"], *(call for call, _ in CALLS.values())):
        module, _, name = place.partition(":")
        __import__(module)
        hooked = sys.modules[module]
        for attribute in name.split("."):
            hooked = getattr(hooked, attribute)
        assert callable(hooked)

"""Each fault of processes, storage, two at once and surroundings once; the whole campaign is scripts/faults.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, shared

WORDS = ("processes:", "storage:", "two at once:", "surroundings:")


@pytest.mark.slow
def test_what_has_to_hold_after_each_fault_does():
    shared("data/imagenet-sample", "the ImageNet sample")
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), "--rounds", "1", "--seed", "1", "--only", *WORDS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 40


@pytest.mark.parametrize("word", ["kill -9", "disk full", "one run folder", "no font"])
def test_faults_are_found_by_their_names(word):
    script = Path(ROOT / "scripts" / "faults.py")
    listed = subprocess.run(
        [sys.executable, str(script), "--list", "--only", word], capture_output=True, text=True, check=True
    ).stdout
    assert word in listed
    assert len(listed.splitlines()) < 5

"""Two at once in one folder: the second stops at once and names the first; a dead process blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qat_ste.base import files as folder_lock
from qat_ste.base.files import FolderInUse, locked
from tests.conftest import SHORT, command

HOLDER = """
import sys, time
from pathlib import Path
from qat_ste.base.files import locked
with locked(Path(sys.argv[1]), "hydra.run.dir"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(folder_lock.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


def held_by(process: subprocess.Popen) -> str:
    return f"in use by process {process.pid} on {os.uname().nodename}; wait until that ends"


def test_the_second_is_told_who_the_first_is_until_that_is_dead(holder, tmp_path):
    with pytest.raises(FolderInUse) as caught, locked(tmp_path, "hydra.run.dir"):
        pass
    assert str(caught.value) == f"hydra.run.dir={tmp_path}: {held_by(holder)}, or choose another hydra.run.dir"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path, "hydra.run.dir"):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_run_stops_before_torch_and_leaves_the_folder_as_it_is(holder, tmp_path):
    begun = time.monotonic()
    run = command(*SHORT, "logger=none", f"hydra.run.dir={tmp_path}")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"qat-run: hydra.run.dir={tmp_path}: {held_by(holder)}")
    assert time.monotonic() - begun < 10
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_sweep_stops_before_its_first_job(holder, tmp_path):
    run = command("-m", "train.seed=1,2", *SHORT, "logger=none", f"hydra.sweep.dir={tmp_path}")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"qat-run: hydra.sweep.dir={tmp_path}: {held_by(holder)}")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    listed = command("-m", "train.seed=1,2", "dry_run=true", f"hydra.sweep.dir={tmp_path}")
    assert (listed.code, listed.out.count("qat-run train.seed=")) == (0, 2), "to list it disturbs nobody"


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", no_locks)
    with locked(tmp_path, "hydra.run.dir"):
        assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text

"""Atomic replacement of files; locks of folders, which end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qat_ste.base import files
from qat_ste.base.files import FolderInUse, lock, locked, remove_unfinished, replacing, write, write_json
from tests.conftest import SHORT, command
from tests.loggers.test_files import no_file_longer_than

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
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


def held_by(process: subprocess.Popen) -> str:
    return f"in use by process {process.pid} on {os.uname().nodename}; wait until it ends"


def test_the_second_process_is_refused_until_the_first_ends(holder, tmp_path):
    with pytest.raises(FolderInUse) as caught, locked(tmp_path, "hydra.run.dir"):
        pass
    assert str(caught.value) == f"hydra.run.dir={tmp_path}: {held_by(holder)}, or choose another hydra.run.dir"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path, "hydra.run.dir"):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_run_in_a_locked_folder_stops_and_changes_nothing(holder, tmp_path):
    run = command(*SHORT, "logger=none", f"hydra.run.dir={tmp_path}")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"qat-run: hydra.run.dir={tmp_path}: {held_by(holder)}")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_sweep_in_a_locked_folder_stops_before_its_first_job(holder, tmp_path):
    run = command("-m", "train.seed=1,2", *SHORT, "logger=none", f"hydra.sweep.dir={tmp_path}")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"qat-run: hydra.sweep.dir={tmp_path}: {held_by(holder)}")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    listed = command("-m", "train.seed=1,2", "dry_run=true", f"hydra.sweep.dir={tmp_path}")
    assert (listed.code, listed.out.count("qat-run train.seed=")) == (0, 2), "a dry run needs no lock"


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    with locked(tmp_path, "hydra.run.dir"):
        assert caplog.messages == [
            f"{tmp_path} cannot be locked (No locks available): make sure that no other process uses it"
        ]


def test_a_waiting_process_is_given_the_holder(holder, tmp_path):
    holders = []

    def end(name: str) -> None:
        holders.append(name)
        holder.kill()

    with (tmp_path / ".lock").open("a+b", buffering=0) as file:
        lock(file, end)
        assert holders == [f"process {holder.pid} on {os.uname().nodename}"]
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_at_the_end_only(tmp_path, durable):
    path = tmp_path / "file"
    write(path, "before", durable)
    with replacing(path, durable) as file:
        file.write(b"aft")
        file.flush()
        assert path.read_text() == "before"
        file.write(b"er")
    assert path.read_text() == "after"
    with pytest.raises(RuntimeError), replacing(path, durable) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_leaves_it_unchanged(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"loss": float("nan")})
    with no_file_longer_than(100), pytest.raises(OSError, match="File too large") as caught:
        write_json(path, ["x"] * 100)
    assert (caught.value.filename, path.read_text()) == (str(path), '{\n "loss": null\n}\n')
    for target in (tmp_path / "absent" / "file", tmp_path):
        with pytest.raises(OSError) as caught:
            write(target, "x")
        assert (caught.value.filename, caught.value.filename2) == (str(target), None)
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_replaced(tmp_path):
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "file"
    elsewhere.write_text("theirs")
    for link in (path, tmp_path / f".file.{os.getpid()}.tmp"):
        link.symlink_to(elsewhere)
    write(path, "ours")
    assert (elsewhere.read_text(), path.read_text(), path.is_symlink()) == ("theirs", "ours", False)


def test_temporary_files_of_killed_processes_do_no_harm_and_can_be_removed(tmp_path):
    path = tmp_path / "file"
    for number in (os.getpid(), 1):
        (tmp_path / f".file.{number}.tmp").write_text("half")
    write(path, "whole")
    assert path.read_text() == "whole"
    remove_unfinished(path)
    assert list(tmp_path.iterdir()) == [path]

from __future__ import annotations

import os

# Tests run in several processes: their threads, and those of what they start, must not spin on a core while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread for each of the processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import io
import json
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from qat_ste.app import run_cli as cli
from tests.undrawn import undrawn

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("train.steps=24", "metrics.every=6", "train.steps_per_epoch=8")
SHARED = Path(os.environ.get("QAT_STE_SHARED", ROOT.parent / "shared"))


# Restores default SIGINT and SIGHUP, which background shells and nohup ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def every_fifth(cases):
    """Parameters for a walk over many cases: every fifth in the default suite, the others with the slow tests."""
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if n % 5 else [], id=case[0][:40]) for n, case in enumerate(cases)
    ]


def shared(name: str, what: str) -> Path:
    """A path in the shared folder; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {what} at {path}; set QAT_STE_SHARED to the folder that holds {name}")
    return path


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    return shared("data/mnist", "the four MNIST files")


@pytest.fixture(scope="session")
def check_run() -> Path:
    return shared("tools/check_run.py", "the checker of run folders")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """One short run of the installed command with offline W&B."""
    return trained_once(tmp_path_factory, "finished", *SHORT, "logger=wandb")


@pytest.fixture(scope="session")
def segment_run(tmp_path_factory) -> Path:
    """One short run of the installed command with 12 segments of 2 steps, which have intervals, and 4 of 6 steps."""
    return trained_once(tmp_path_factory, "segments", *SHORT, "logger=none", "train.segment=[6,2]")


def trained_once(tmp_path_factory, name: str, *overrides: str) -> Path:
    """The folder of a run that the processes of the tests share."""
    base = tmp_path_factory.getbasetemp()
    output = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    output.mkdir(exist_ok=True)
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = list(output.glob("*/*/stdout.txt"))  # written last
        return done[0].parent if done else trained(output, *overrides)


def trained(output: Path, *overrides: str) -> Path:
    """The folder of one run of the installed command."""
    command = [sys.executable, "-m", "qat_ste.app.run_cli", *overrides, f"paths.output={output}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = output.glob("*/*")
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def no_drawing():
    """Figures of pages are made but not drawn."""
    with undrawn():
        yield


def command(*arguments: str) -> SimpleNamespace:
    """Runs the command in this process, which has torch already, without drawing; gives exit code and streams."""
    GlobalHydra.instance().clear()
    code, out, err = 0, io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["qat-run", *arguments]), redirect_stdout(out), redirect_stderr(err), undrawn():
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def qat_run(tmp_path, monkeypatch):
    """Runs the command in this process; gives exit code, streams, and the run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def call(*arguments: str, folder: str = "run") -> SimpleNamespace:
        run = tmp_path / folder
        done = command(*arguments, f"hydra.run.dir={run}")

        def read(name: str):
            return json.loads((run / name).read_text())

        return SimpleNamespace(**vars(done), folder=run, read=read)

    return call

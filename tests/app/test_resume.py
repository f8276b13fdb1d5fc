"""Cut off and continued: the same numbers as undisturbed, bit for bit, and never a file that cannot be read."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from qat_ste.app import run_cli as cli
from tests.app.test_run import numbers
from tests.conftest import command

RUN = ("train.steps=60", "train.steps_per_epoch=20", "metrics.every=7", "checkpoint.every_steps=5", "logger=none")
TWO_RANKS = ("runtime.devices=2", "runtime.device=cpu", "train.steps=240", "checkpoint.every_steps=10")


def start(folder: Path, *more: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "qat_ste.app.run_cli", *RUN, *more, f"hydra.run.dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.Popen(command, cwd=folder.parent, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)  # fmt: skip


def finish(folder: Path) -> None:
    done = command(*RUN, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err


def finish_on_two(folder: Path) -> None:
    process = start(folder, *TWO_RANKS)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def read(folder: Path) -> tuple[dict, str]:
    return numbers(json.loads((folder / "results.json").read_text())), (folder / "metrics.jsonl").read_text()


def assert_every_file_can_be_read(folder: Path) -> None:
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    for path in folder.glob("checkpoint*.pt"):
        assert torch.load(path, weights_only=True)["step"] > 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def seconds(undisturbed) -> float:
    """From the first row to the end, of which a moment is drawn."""
    return json.loads((undisturbed / "status.json").read_text())["wall_seconds"] + 1.0


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed, seconds, tmp_path):
    folder, draw, seen = tmp_path / "run", random.Random(10), []
    for _ in range(5):
        process = start(folder)
        deadline = time.monotonic() + 60
        while not (folder / "status.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, seconds))
        process.kill()
        process.communicate()
        assert_every_file_can_be_read(folder)
        seen.append(json.loads((folder / "status.json").read_text())["step"])
    finish(folder)
    assert read(folder) == read(undisturbed), seen


@pytest.mark.slow
def test_terminated_and_continued(undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "checkpoint.every_steps=null")
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("was done before the signal came")
    assert process.returncode == 143, err
    assert "the same command resumes the run with" in out
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "preempted"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == status["step"]
    finish(folder)
    assert read(folder) == read(undisturbed)


def cut_off(qat_run, monkeypatch, at: int, *more: str):
    """A run that ends after step ``at`` as if by a fault of ours."""
    from qat_ste.experiment.monitor import DivergenceMonitor

    observe = DivergenceMonitor.observe

    def fail(self, step, levels):
        if step == at:
            raise RuntimeError("cut off")
        observe(self, step, levels)

    with monkeypatch.context() as patch:
        patch.setattr(DivergenceMonitor, "observe", fail)
        run = qat_run(*RUN, *more)
    assert (run.code, run.err) == (1, "qat-run: the run failed: RuntimeError: cut off\n")
    log = (run.folder / "run.log").read_text()
    assert "Traceback" in log and 'raise RuntimeError("cut off")' in log, "where it happened"


def test_another_configuration_stops_and_names_the_keys(qat_run, undisturbed, monkeypatch):
    cut_off(qat_run, monkeypatch, 23)
    run = qat_run(*RUN, "train.seed=3", "optimizer.lr=1e-3")
    assert run.code == 2
    first, second = run.err.strip().splitlines()
    assert first.startswith("qat-run: train.seed=3: ")
    assert first.endswith("was made with train.seed=42; use that value, or choose another hydra.run.dir")
    assert second.startswith("qat-run: optimizer.lr=0.001: ")
    again = qat_run(*RUN, "runtime.line_seconds=1", "checkpoint.every_steps=9")
    assert again.code == 0, "what does not touch the numbers may change"
    assert "resumes after step 20" in again.out
    assert read(again.folder)[1] == read(undisturbed)[1]


@pytest.mark.parametrize(
    "damage", ["cut", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("flipped", "empty", "pickle"))]
)
def test_a_damaged_checkpoint_leaves_the_one_before(qat_run, undisturbed, monkeypatch, caplog, damage):
    cut_off(qat_run, monkeypatch, 23)
    path = Path("run/checkpoint.pt")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
    elif damage == "empty":
        content = b""
    else:

        class Evil:
            def __reduce__(self):
                return (Path("harmed").touch, ())

        torch.save({"config": Evil()}, path)
        content = path.read_bytes()
    path.write_bytes(content)
    run = qat_run(*RUN)
    assert "checkpoint.pt cannot be read (" in run.err
    assert "resumes after step 15" in run.out
    assert not Path("harmed").exists()
    assert read(run.folder) == read(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize(("name", "done"), [("metrics.jsonl", False), ("status.json", False), ("results.json", True)])
def test_other_damaged_files_are_written_anew(qat_run, undisturbed, monkeypatch, name, done, damage):
    if done:
        shutil.copytree(undisturbed, "run")
    else:
        cut_off(qat_run, monkeypatch, 23)
    path = Path("run", name)
    content = bytearray(path.read_bytes())
    content[0] ^= 4
    path.write_bytes(content if damage == "flipped" else path.read_bytes()[: len(content) // 2])
    assert qat_run(*RUN).code == 0
    assert read(path.parent) == read(undisturbed)


@pytest.mark.slow
def test_no_room_for_a_checkpoint_costs_a_warning(qat_run, undisturbed):
    """A file may grow to 600 kB, a checkpoint takes 1 MB: the run goes on without."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        run = qat_run(*RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.code == 1, run.err
    told, *others = run.err.splitlines()
    assert told == "no checkpoint at step 5: File too large; the previous one stays"
    reason = f"the report could not be written: {run.folder / 'weights.npz'}: File too large"
    assert others == [f"{reason}; this command writes it later: qat-report {run.folder}"], "not at each step"
    assert (run.folder / "run.log").read_text().count("no checkpoint at step") == 12
    assert "Traceback" not in run.err
    assert not list(run.folder.glob("checkpoint*"))
    assert read(run.folder) == read(undisturbed)


def test_only_the_last_checkpoints_stay(qat_run):
    run = qat_run(*RUN, "checkpoint.keep=3")
    steps = [torch.load(run.folder / name, weights_only=True)["step"]
             for name in ("checkpoint.pt", "checkpoint.1.pt", "checkpoint.2.pt")]  # fmt: skip
    assert steps == [60, 55, 50]
    assert len(list(run.folder.glob("checkpoint*"))) == 3
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert not [name for member in state["members"].values() for name in member["model"] if "_orig_mod" in name]


@pytest.mark.slow
def test_a_continued_run_is_one_run_for_wandb(qat_run, monkeypatch):
    cut_off(qat_run, monkeypatch, 23, "logger=wandb")
    qat_run(*RUN, "logger=wandb")
    files = [path.name for path in Path("run/wandb").glob("offline-run-*/run-*.wandb")]
    assert len(files) == 2
    assert len(set(files)) == 1


@pytest.fixture(scope="module")
def undisturbed_on_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    finish_on_two(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a rank", "the launching process", "the launching process, at once"])
def test_two_ranks_disturbed_and_continued(undisturbed_on_two, tmp_path, victim):
    folder = tmp_path / "run"
    # As in a shell's background, where the signal that torch sends to ranks without a parent is ignored.
    process = start(folder, *TWO_RANKS, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN))
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    if victim == "a rank":
        os.kill(int(ranks[-1]), signal.SIGKILL)
        _, err = process.communicate(timeout=100)
        assert (process.returncode, err.strip()) == (1, "the run failed: rank 1 was killed by SIGKILL")
        assert json.loads((folder / "status.json").read_text())["status"] == "failed"
    elif victim == "the launching process, at once":
        process.kill()
        process.communicate(timeout=30)  # the ranks have the other ends of the pipes
        deadline = time.monotonic() + 20
        while left := [rank for rank in ranks if Path(f"/proc/{rank}").exists()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    else:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (143, "")
        assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    finish_on_two(folder)
    assert read(folder) == read(undisturbed_on_two)


@pytest.mark.slow
def test_ranks_that_torchrun_started(undisturbed_on_two, tmp_path):
    """One run folder, by rank 0, with the numbers of ranks started here."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "qat_ste.app.run_cli"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [*launcher, *RUN, *TWO_RANKS[1:], f"paths.output={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").glob("*/*")
    assert read(folder)[1] == read(undisturbed_on_two)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

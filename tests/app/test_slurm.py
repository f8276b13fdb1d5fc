"""Sweeps through a real SLURM on this machine: submitit's launcher and the array script, preempted and not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from qat_ste.app import run_cli as cli
from tests.app.test_run import numbers
from tests.app.test_sweep import table
from tests.conftest import ROOT, shared

pytestmark = pytest.mark.slurm
SMALL = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", "logger=none")
FEW = ("train.steps=24", "train.steps_per_epoch=8", "metrics.every=6")
LONG = ("train.steps=1000", "train.steps_per_epoch=500", "metrics.every=50", "checkpoint.every_seconds=2",
        "runtime.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment in which SLURM's commands reach a node of this machine's own."""
    if not Path("/usr/sbin/slurmctld").exists() or os.geteuid() != 0:
        pytest.skip("needs SLURM's programs (slurm-wlm, munge) and root")
    if find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("needs hydra-submitit-launcher: pip install 'qat-ste[slurm]'")
    script = shared("slurm-single-node.sh", "the script that starts a SLURM of one node")
    home = Path("/tmp") / f"slurm-{os.getpid()}"  # short: it holds a socket
    environment = os.environ | {"SLURM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)  # `nproc`, which the script asks, takes it for the number of cores
    done = subprocess.run(["bash", script, "start"], env=environment, capture_output=True, text=True, timeout=100)
    if done.returncode:
        subprocess.run(["bash", script, "stop"], env=environment, capture_output=True)
        pytest.skip(f"SLURM does not start here: {done.stderr[-300:]}")
    environment["SLURM_CONF"] = re.search(r"SLURM_CONF=(\S+)", done.stdout)[1]
    bin_ = Path(sys.executable).parent
    environment["PATH"] = os.pathsep.join([str(home / "bin"), str(bin_), environment["PATH"]])
    yield environment
    subprocess.run(["scancel", "--user", "root"], env=environment, capture_output=True)
    subprocess.run(["bash", script, "stop"], env=environment, capture_output=True, timeout=100)
    shutil.rmtree(home, ignore_errors=True)


def start(slurm: dict, folder: Path, *arguments: str, module: str = "run_cli") -> subprocess.Popen:
    command = [sys.executable, "-m", f"qat_ste.app.{module}", *arguments]
    return subprocess.Popen(command, cwd=folder, env=slurm, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def until(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def urgent(slurm: dict) -> None:
    """A job that takes every core from those of the main partition."""
    cores = subprocess.run(["sinfo", "-h", "-p", "main", "-o", "%c"], env=slurm, capture_output=True, text=True).stdout
    command = ["sbatch", "--wait", "--quiet", "--partition=urgent", f"--cpus-per-task={cores.strip()}", "--mem=256M",
               "--output=/dev/null", "--wrap", "sleep 1"]  # fmt: skip
    subprocess.run(command, env=slurm, check=True, timeout=200)


def read(folder: Path) -> tuple[dict, str]:
    return numbers(json.loads((folder / "results.json").read_text())), (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The long run on its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-m", "qat_ste.app.run_cli", *LONG, "logger=none", f"hydra.run.dir={folder / 'run'}"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=400)
    return folder / "run"


def test_four_jobs(slurm, tmp_path):
    process = start(slurm, tmp_path, "-m", *SMALL, *FEW, "estimator=tanh,pwl", "train.seed=1,2")
    code, out, err = finish(process)
    assert code == 0, err
    assert [cells[0] for cells in table(out).values()] == ["done"] * 4
    logs = [path.read_text() for path in tmp_path.rglob(".submitit/*/*.out")]
    assert len(logs) == 4, "each was a job of SLURM's"


def test_a_bad_value_and_a_loss_that_explodes_stop_no_other(slurm, tmp_path):
    code, out, err = finish(start(slurm, tmp_path, "-m", *SMALL, *FEW, "optimizer.lr=3e-3,-1,1e30,1e-3"))
    assert code == 1
    assert "Traceback" not in err, err
    assert sorted(cells[0] for cells in table(out).values()) == ["done", "done", "failed", "failed"]
    assert "optimizer.lr=-1: must be a positive finite number" in out
    assert "the loss of reference is " in out


def test_preempted_queued_again_and_continued(slurm, undisturbed, tmp_path):
    process = start(slurm, tmp_path, "-m", *SMALL, *LONG, "train.seed=42", "hydra.launcher.cpus_per_task=2")
    until(lambda: list(tmp_path.rglob("checkpoint.pt")))
    urgent(slurm)
    code, out, err = finish(process)
    assert code == 0, out + err
    (folder,) = {path.parent for path in tmp_path.rglob("checkpoint.pt")}
    assert re.search(r"SIGUSR2: stopped after step \d+", (folder / "run.log").read_text())
    assert re.search(r"resumes after step \d+", (folder / "run.log").read_text())
    assert read(folder) == read(undisturbed)


STUDY = ("estimator=tanh", "optimizer=sgd", "tune.lr=[1e-3,1e-2]", "tune.seeds=1", "tune.extensions=0",
         "tune.together=2", "train.steps=1200")  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> dict:
    """Those of the study without a cluster."""
    folder = tmp_path_factory.mktemp("study")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = start(environment, folder, *STUDY, "tune.output=here", "tune.workers=2", module="tune_cli")
    code, out, err = finish(process)
    assert code == 0, out + err
    return json.loads((folder / "here" / "tune.json").read_text())["cells"]


def on_node(folder: Path, signals: str) -> list[int]:
    """Processes of submitit for this folder whose mask ``signals`` in /proc has SIGUSR2."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"submitit.core._submit\0{folder}" in (process / "cmdline").read_text():
                mask = re.search(rf"{signals}:\s*(\w+)", (process / "status").read_text())[1]
                found += [int(process.name)] * (int(mask, 16) >> (signal.SIGUSR2 - 1) & 1)
    return found


@pytest.mark.parametrize("signals", ["SigIgn", "SigCgt"], ids=["starts", "trains"])
def test_a_study_whose_job_is_preempted_while_it(slurm, cells, tmp_path, signals):
    process = start(slurm, tmp_path, *STUDY, *SMALL[:3], "tune.output=there", module="tune_cli")
    found = []
    until(lambda: found.extend(on_node(tmp_path, signals)) or found)
    if signals == "SigIgn":  # the job handles the signal soon: it has to come at once
        os.kill(found[0], signal.SIGUSR2)
    else:
        urgent(slurm)
    code, out, err = finish(process)
    assert code == 0, out + err
    logs = [path.read_text() for path in tmp_path.rglob("submitit/*.*") if path.suffix in (".out", ".err")]
    assert any("SIGUSR2" in log for log in logs) or signals == "SigIgn"
    assert json.loads((tmp_path / "there" / "tune.json").read_text())["cells"] == cells


def test_a_study_that_loses_a_job_keeps_the_others(slurm, tmp_path):
    process = start(slurm, tmp_path, *STUDY, *SMALL[:3], "tune.output=there", module="tune_cli")
    found = []
    until(lambda: found.extend(on_node(tmp_path, "SigCgt")) or found)
    os.kill(found[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1
    assert re.match(r"qat-tune: job \d+_\d ended as FAILED without a result, log .*; the same command", err), err
    assert list(tmp_path.rglob("there/*/*.json"))


def submit(slurm: dict, folder: Path, *arguments: str) -> subprocess.Popen:
    """Lists the runs of a sweep and submits them with the array script."""
    code, lines, err = finish(start(slurm, folder, "-m", *arguments, "dry_run=true"))
    assert code == 0, err
    (folder / "runs.txt").write_text(lines)
    array = f"--array=1-{len(lines.splitlines())}"
    command = [
        "sbatch",
        "--wait",
        array,
        "--cpus-per-task=1",
        "--mem=1G",
        ROOT / "scripts" / "sweep.sbatch",
        "runs.txt",
    ]
    return subprocess.Popen(command, cwd=folder, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_array_script_runs_what_the_dry_run_lists(slurm, tmp_path):
    process = submit(slurm, tmp_path, *FEW, "logger=none", "estimator=tanh,pwl", "train.seed=1,2")
    assert process.wait(timeout=300) == 0
    status = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("status.json")]
    assert status == ["done"] * 4
    again = start(slurm, tmp_path, "-m", *FEW, "logger=none", "estimator=tanh,pwl", "train.seed=1,2")
    code, out, err = finish(again)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("4 skipped: "), "the folders are those of the sweep"


def test_a_task_of_the_array_that_is_preempted_goes_on(slurm, undisturbed, tmp_path):
    process = submit(slurm, tmp_path, *LONG, "logger=none")
    until(lambda: list(tmp_path.rglob("checkpoint.pt")))
    urgent(slurm)
    assert process.wait(timeout=400) == 0
    (folder,) = {path.parent for path in tmp_path.rglob("checkpoint.pt")}
    assert re.search(r"resumes after step \d+", (folder / "run.log").read_text())
    assert read(folder) == read(undisturbed)

"""Sweeps: names of folders, skipped runs, failing jobs, interrupted sweeps."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from qat_ste.app import run_cli as cli
from qat_ste.app.sweep import Sweep, sweep_name
from tests.app.test_run import numbers
from tests.conftest import SHORT, command
from tests.loggers.test_wandb import records

FEW = ("train.steps=6", "metrics.every=3", "train.steps_per_epoch=3", "logger=none")


def start(output: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "qat_ste.app.run_cli", *arguments, f"paths.output={output}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[2])
    return subprocess.Popen(command, cwd=output.parent, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)  # fmt: skip


def sweep(output: Path, *arguments: str) -> tuple[int, str, str]:
    done = command("-m", *arguments, f"paths.output={output}")
    return done.code, done.out, done.err


def sweep_in_process(output: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs a sweep in a new process."""
    process = start(output, "-m", *arguments)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def table(out: str) -> dict[str, list[str]]:
    """The words of each row of the table, by run."""
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:2] == ["run", "outcome"])
    return {line.split()[0]: line.split()[1:] for line in lines[first + 1 : -1]}


def results(folder: Path) -> dict:
    return numbers(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[Path, str]:
    """A sweep of four runs with offline W&B, and what it printed."""
    output = tmp_path_factory.mktemp("sweep") / "out"
    output.mkdir()
    code, out, err = sweep(output, *SHORT, "estimator=tanh,pwl", "train.seed=1,2")
    assert code == 0, err
    return output, out


def test_each_run_has_a_folder_named_by_its_overrides(four):
    output, out = four
    (folder,) = (output / "sweeps").iterdir()
    assert folder.name == sweep_name([*SHORT, "estimator=tanh,pwl", "train.seed=1,2"])
    overrides = "metrics.every=6,train.seed={},train.steps=24,train.steps_per_epoch=8"
    names = {f"estimator={name},{overrides.format(seed)}" for name in ("tanh", "pwl") for seed in (1, 2)}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == names
    assert {name: cells[0] for name, cells in table(out).items()} == dict.fromkeys(names, "done")
    assert out.splitlines()[-1] == f"4 done: {folder}"


def test_the_table_shows_the_verdict_or_the_reason(tmp_path, monkeypatch, capsys):
    """Runs of older versions did not store the verdict's outcome; a failed run has none."""
    runs = {
        "a": ("done", {"verdict": {"outcome": "hardly mattered"}}),
        "b": ("skipped", {"verdict": {"outcome": "claim fails"}}),
        "c": ("done", {"verdict": {"statement": "The estimator mattered."}}),
        "d": ("failed", {"verdict": {"outcome": "mattered"}}),
        "e": ("done", None),
    }
    for name, (outcome, content) in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"outcome": outcome, "reason": "the loss is nan"}))
        (tmp_path / name / "status.json").write_text(json.dumps({"step": 1500, "wall_seconds": 23.4}))
        if content is not None:
            (tmp_path / name / "results.json").write_text(json.dumps(content))
    sweep = Sweep()
    sweep.folder = tmp_path
    assert sweep.print_table() == 1
    assert {name: " ".join(cells) for name, cells in table(capsys.readouterr().out).items()} == {
        "a": "done 1500 23 s hardly mattered",
        "b": "skipped 1500 23 s claim fails",
        "c": "done 1500 23 s –",
        "d": "failed 1500 23 s the loss is nan",
        "e": "done 1500 23 s –",
    }
    long = tmp_path / "estimator=tanh,metrics.every=6,train.seed=1,train.steps=1500,train.steps_per_epoch=50"
    (tmp_path / "a").rename(long)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    sweep.print_table()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert any(re.search(r"done +1500 +23 s +hardly mattered", line) for line in lines), "the name alone is folded"


@pytest.mark.slow
def test_wandb_has_one_group_and_tags_by_row(four):
    (folder,) = (four[0] / "sweeps").iterdir()
    runs = [path for path in folder.iterdir() if path.is_dir()]
    logged = {path.name: next(record["run"] for record in records(path) if record["type"] == "run") for path in runs}
    assert len({run["run_id"] for run in logged.values()}) == 4
    for name, run in logged.items():
        assert run["run_group"] == folder.name
        assert run["job_type"] == "default"
        assert set(run["tags"]) == {"default", name.split(",")[0].removeprefix("estimator="), "sgd"}


def test_a_repeated_sweep_skips_finished_runs_and_runs_removed_ones_again(four):
    output, _ = four
    (folder,) = (output / "sweeps").iterdir()
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    before = {path: results(path) for path in runs}
    times = {path: (path / "results.json").stat().st_mtime_ns for path in runs}
    subprocess.run(["rm", "-r", runs[1]], check=True)
    code, out, err = sweep(output, *SHORT, "estimator=tanh,pwl", "train.seed=1,2")
    assert code == 0, err
    assert [cells[0] for _, cells in sorted(table(out).items())] == ["skipped", "done", "skipped", "skipped"]
    assert out.splitlines()[-1].startswith(("3 skipped, 1 done", "1 done, 3 skipped"))
    again = {path: (path / "results.json").stat().st_mtime_ns for path in runs}
    assert [again[path] == times[path] for path in runs] == [True, False, True, True]
    assert {path: results(path) for path in runs} == before


def test_a_failing_job_stops_no_other_and_the_table_shows_the_reason(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    code, out, err = sweep(output, *FEW, "optimizer.lr=-1,1e30,3e-3")
    assert code == 1
    assert "Traceback" not in err
    cells = {name.partition("optimizer.lr=")[2].split(",")[0]: " ".join(words) for name, words in table(out).items()}
    assert cells["-1"].startswith("failed 0 0 s optimizer.lr=-1: must be a positive finite number")
    assert cells["1e+30"].startswith("failed ")
    assert "the loss of reference is " in cells["1e+30"]
    assert cells["0.003"].startswith("done 6 ")
    assert out.splitlines()[-1].startswith("2 failed, 1 done: ")
    code, out, _ = sweep(output, *FEW, "optimizer.lr=-1,1e30,3e-3")
    assert code == 1
    assert out.splitlines()[-1].startswith("2 failed, 1 skipped: ")


@pytest.mark.slow
def test_the_table_shows_an_unforeseen_error_too(qat_run, monkeypatch):
    """One of two jobs raises an exception that no code expects."""
    from qat_ste.app import run as runner

    compare = runner.compare

    def fail(*arguments, **named):
        if named["training"].seed == 1:
            raise RuntimeError("nobody [foresaw] this")
        return compare(*arguments, **named)

    monkeypatch.setattr(runner, "compare", fail)
    monkeypatch.setenv("COLUMNS", "200")
    run = qat_run("-m", *FEW, "train.seed=1,2", "hydra.sweep.dir=sweep")
    assert run.code == 1
    cells = {name.split(",")[1]: " ".join(words) for name, words in table(run.out).items() if "seed" in name}
    log = next(Path("sweep").glob("*seed=1*/run.log")).read_text()
    assert "Traceback" in log
    assert "RuntimeError: nobody [foresaw] this" in run.out
    assert run.out.splitlines()[-1].startswith("1 failed, 1 done: "), cells


@pytest.mark.slow
def test_dry_run_lists_working_commands_and_leaves_no_files(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    code, out, err = sweep(output, *FEW, "optimizer=sgd,adam", "dry_run=true")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.partition("  # ")[2] for line in lines] == ["4 members x 6 steps of 64", "3 members x 6 steps of 64"]
    assert [str(path.relative_to(output)) for path in output.rglob("*")] == ["sweeps"]
    assert command(*shlex.split(lines[1], comments=True)[1:]).code == 0
    (folder,) = (output / "sweeps").glob("*/*")
    assert folder.name == "logger=none,metrics.every=3,optimizer=adam,train.steps=6,train.steps_per_epoch=3"
    code, out, _ = sweep(output, *FEW, "optimizer=sgd,adam")
    assert code == 0
    assert [table(out)[name][0] for name in sorted(table(out))] == ["skipped", "done"], "the sweep finds it"
    code, out, err = sweep(output, *FEW, "quantizer.bits=99,3", "dry_run=true")
    assert code == 2
    assert (
        err.strip() == "qat-run: quantizer.bits=99: must be a whole number from 1 to 16; for example quantizer.bits=2"
    )
    assert out.splitlines()[0].startswith("qat-run train.steps=6 "), "the other runs are listed nevertheless"


@pytest.mark.parametrize(
    ("sweep", "jobs"),
    [
        (("estimator=tanh,pwl", "train.seed=0,1"), [("estimator=pwl", "train.seed=0"), ("estimator=pwl", "train.seed=1")]),
        (("experiment=mnist_sgd,mnist_adam", "row=bits_4"), [("experiment=mnist_adam", "row=bits_4")]),
        (("train.epochs=null,3", "paths.data=a,'b c'"), [("train.epochs=3", "paths.data='b c'")]),
        (("optimizer.lr=1e-3,'${train.l2}'",), [("optimizer.lr=${train.l2}",)]),
        (("optimizer=adam", "optimizer.betas=[0.9,0.95],[0.9,0.999]"), [("optimizer=adam", "optimizer.betas=[0.9,0.999]")]),
        (("train.seed=5,6", "train={seed:7,steps:3}"), [("train.seed=6", "train={seed:7,steps:3}")]),
        (("+optimizer.extra=1,2", "~optimizer.momentum"), [("+optimizer.extra=2", "~optimizer.momentum")]),
    ],
)  # fmt: skip
def test_a_job_has_the_configuration_of_the_same_single_run(monkeypatch, tmp_path, sweep, jobs):
    """Otherwise a sweep would not find runs that are done."""
    seen = []
    monkeypatch.setattr(cli, "_describe", lambda job: seen.append(job.cfg))
    alone = []
    for overrides in jobs:
        assert command(*overrides, "dry_run=true", "logger=none", f"hydra.run.dir={tmp_path}/run").code == 0
        alone.append(seen.pop())
    assert command("-m", *sweep, "dry_run=true", "logger=none", f"hydra.sweep.dir={tmp_path}/sweep").code == 0
    assert seen[-len(jobs) :] == alone


def test_finished_runs_are_skipped_without_torch(four, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    code, out, err = sweep_in_process(four[0], *SHORT, "estimator=tanh,pwl", "train.seed=1,2")
    assert (code, out.splitlines()[-1].split(":")[0]) == (0, "4 skipped"), err
    assert "| hydra" in err
    assert "| torch" not in err


def test_a_second_ctrl_c_ends_the_launching_process_at_once(tmp_path):
    code = "import signal, sys; from pathlib import Path; from qat_ste.app.sweep import Sweep; sweep = Sweep()\n"
    code += "sweep.folder = Path(sys.argv[1]); signal.signal(signal.SIGINT, sweep._stop)\n"
    code += "signal.raise_signal(signal.SIGINT); print('goes on', flush=True); signal.raise_signal(signal.SIGINT)"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout == "stopping: each run saves a checkpoint\ngoes on\n"
    assert (tmp_path / ".stop").exists()


def test_the_folder_depends_on_the_command():
    assert sweep_name(["-m", "a=1,2", "paths.output=x", "hydra/launcher=laptop"]) == sweep_name(["a=1,2", "--multirun"])
    assert sweep_name(["-m", "a=1,2"]) != sweep_name(["-m", "a=1,2,3"])


def until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = ("train.steps=400", "train.steps_per_epoch=200", "metrics.every=20", "logger=none", "checkpoint.every_steps=40",
        "train.seed=1,2", "runtime.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    output.mkdir()
    code, _, err = sweep(output, *LONG)
    assert code == 0, err
    return output


def assert_same(output: Path, other: Path) -> None:
    folders = sorted(path for path in (other / "sweeps").glob("*/*") if path.is_dir())
    assert len(folders) == 2
    for folder in folders:
        same = output / folder.relative_to(other)
        assert results(same) == results(folder)
        assert (same / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "number"), [("basic", signal.SIGKILL), ("laptop", signal.SIGINT)])
def test_interrupted_and_started_again(uninterrupted, tmp_path, launcher, number):
    """Gives the numbers of the uninterrupted sweep of one job at a time; no job outlives the launching process.

    Ctrl-C reaches all jobs, and each saves a checkpoint.
    """
    if launcher == "laptop" and find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs hydra-joblib-launcher: pip install 'qat-ste[joblib]'")
    output = tmp_path / "out"
    output.mkdir()
    arguments = ("-m", *LONG, f"hydra/launcher={launcher}")
    process = start(output, *arguments, start_new_session=True)
    jobs = 2 if launcher == "laptop" else 1
    until(lambda: len(list(output.glob("sweeps/*/*/checkpoint.pt"))) == jobs, process)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    files = [path for path in output.glob("sweeps/*/*/job.json") if path.is_file()]
    pids = [json.loads(path.read_text())["pid"] for path in files]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    steps = [json.loads((path.parent / "status.json").read_text())["step"] for path in files]
    assert max(steps) < 400, "the run was done before the signal arrived"
    if number == signal.SIGINT:
        assert (process.returncode, "Traceback" in err) == (130, False), err
        assert table(out)[files[0].parent.name][0] == "preempted"
    if number != signal.SIGKILL or launcher == "laptop":
        assert {json.loads(path.read_text())["outcome"] for path in files} == {"preempted"}
    code, out, err = (sweep if launcher == "basic" else sweep_in_process)(output, *arguments[1:])
    assert code == 0, err
    assert out.splitlines()[-1].startswith("2 done: ")
    assert_same(output, uninterrupted)

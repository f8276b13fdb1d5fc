"""``qat-atlas`` in this process: what it writes, what it trains again, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qat_ste.app import atlas_cli
from tests.app.in_process import in_process
from tests.conftest import every_fifth

SMALL = ("atlas.steps=4", "atlas.smaller=2", "atlas.seeds=[1]", "atlas.workers=1", "train.batch_size=16")
GRID = ('atlas.estimators=[tanh,"cosine estimator.a=1"]', 'atlas.optimizers=[sgd,"signsgd optimizer.lr=1e-3"]')


@pytest.fixture
def qat_atlas(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    return in_process("qat-atlas", atlas_cli.main, monkeypatch, capsys)


def read(folder: Path = Path("outputs/atlas")) -> dict:
    return json.loads((folder / "atlas.json").read_text())


def test_grid_is_written_and_what_is_there_is_not_trained_again(qat_atlas):
    run = qat_atlas(*SMALL, *GRID)
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[-1].endswith("outputs/atlas/atlas.html")
    found = read()
    assert found["optimizers"] == {"sgd": [0.003, 0.0015], "signsgd": [0.001, 0.0005]}
    assert found["estimators"] == ["tanh", "cosine, a=1"]
    keys = ("estimator", "optimizer", "seed", "lr", "steps")
    grid = {tuple(cell[key] for key in keys) for cell in found["cells"]}
    assert grid == {
        (estimator, optimizer, 1, lr, steps)
        for optimizer, lrs in found["optimizers"].items()
        for lr, steps in zip(lrs, (4, 8), strict=True)
        for estimator in found["estimators"]
    }
    assert {cell["ste"] for cell in found["cells"] if cell["optimizer"] == "signsgd" and not cell["refused"]} == {0}
    assert {path.name for path in Path("outputs/atlas").iterdir()} == {
        ".lock", "cells", "atlas.json", "atlas.html", "atlas.csv", "atlas.md", "figures"}  # fmt: skip

    files = sorted(Path("outputs/atlas/cells").iterdir())
    files[3].write_text(files[3].read_text()[:100])  # cut off
    files[5].unlink()
    times = [path.stat().st_mtime_ns for path in files if path.exists()]
    assert qat_atlas(*SMALL, *GRID).code == 0
    assert read() == found
    assert [path.stat().st_mtime_ns for path in files[:3]] == times[:3]
    more = qat_atlas(*SMALL, 'atlas.estimators=[arctan,tanh,"cosine estimator.a=1"]', GRID[1])
    assert more.code == 0
    assert len(read()["cells"]) == 12
    assert len(list(Path("outputs/atlas/cells").iterdir())) == 12, "those of before are the same files"
    assert files[0].stat().st_mtime_ns == times[0]


@pytest.mark.slow
def test_own_estimator(qat_atlas, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from qat_ste.estimators import Estimator\n\n\nclass Mine(Estimator):\n    def __init__(self, depth):\n"
        "        self.depth = depth\n\n    def shape(self, u, quantizer):\n        return 1 - self.depth * u**4\n"
    )
    (tmp_path / "conf/estimator").mkdir(parents=True)
    (tmp_path / "conf/estimator/mine.yaml").write_text("_target_: mine.Mine\ndepth: 8.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    both = 'atlas.estimators=[mine,"mine estimator.depth=2"]'
    run = qat_atlas(*SMALL, both, "atlas.optimizers=[sgd]", "--config-dir", "conf")
    assert (run.code, run.err) == (0, "")
    factors = {cell["estimator"]: cell["lr_factor"] for cell in read()["cells"]}
    assert 0 < factors["mine"] < factors["mine, depth=2"] < 1
    run = qat_atlas(
        *SMALL, 'atlas.estimators=["mine estimator.width=2"]', "atlas.optimizers=[sgd]", "--config-dir", "conf"
    )
    assert run.code == 2
    assert run.err == (
        "qat-atlas: atlas.estimators=[mine estimator.width=2]: estimator.width=2: there is no such key; "
        "did you mean estimator.depth=2?\n"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    every_fifth([
        ("atlas.estimators=[tanhh]", "atlas.estimators=[tanhh]: no such estimator, allowed are acos, approx_sign, arctan, "),
        ("atlas.optimizers=[sdg]", "atlas.optimizers=[sdg]: no such optimizer, allowed are adafactor, adagrad, "),
        ('atlas.estimators=["tanh estimator.k=0"]', "atlas.estimators=[tanh estimator.k=0]: estimator.k=0: must be a positive finite number; "),
        ('atlas.optimizers=["sgd optimizer.lr=-1"]', "atlas.optimizers=[sgd optimizer.lr=-1]: optimizer.lr=-1: must be a positive finite number; "),
        ("atlas.estimators=[]", "atlas.estimators=[]: must be a list of options of estimator, at least 1; for example atlas.estimators=[tanh]"),
        ("atlas.seeds=[-1]", "atlas.seeds=[-1]: must be a list of whole numbers from 0 to 4294967295, at least 1; for example "),
        ("atlas.steps=0", "atlas.steps=0: must be a whole number from 1 to 100000000; for example atlas.steps=200"),
        ("atlas.steps=x", "atlas.steps=x: must be a whole number; for example atlas.steps=200"),
        ("atlas.smaller=1", "atlas.smaller=1: must be a whole number of at least 2; for example atlas.smaller=5"),
        ("train.batch_size=9999", "train.batch_size=9999: must be from 1 to 1437, the number of images; for example "),
        ("optimizer=sgd", "optimizer=sgd: an atlas takes atlas., dataset, model, quantizer, "),
    ]),
)  # fmt: skip
def test_bad_input_is_one_line(qat_atlas, override, told):
    run = qat_atlas(
        *SMALL, *(o for o in GRID if o.partition("=")[0] != override.partition("=")[0]), override, "--dry-run"
    )
    assert run.code == 2
    (line,) = run.err.splitlines()
    assert line.startswith(f"qat-atlas: {told}")


def test_dry_run_lists_the_jobs_and_leaves_nothing(qat_atlas, tmp_path):
    run = qat_atlas(*SMALL, *GRID, "--dry-run")
    assert run.out.splitlines()[0] == "sgd  lr=0.003  seed=1  4 steps"
    assert len(run.out.splitlines()) == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_cell_without_numbers_is_told_and_costs_no_other(qat_atlas):
    run = qat_atlas(*SMALL, "atlas.estimators=[tanh]", 'atlas.optimizers=["sgd optimizer.lr=1e30",adam]')
    assert run.code == 1
    assert "qat-atlas: tanh under sgd, seed 1, lr 1e+30: reference: the loss is " in run.err
    assert "the loss is " in Path("outputs/atlas/atlas.html").read_text()
    assert all(cell["ste"] is not None for cell in read()["cells"] if cell["optimizer"] == "adam")


def test_help_needs_no_torch(tmp_path):
    code = "import sys; sys.argv = ['qat-atlas', '--help']\nfrom qat_ste.app import atlas_cli\ntry: atlas_cli.main()\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "smaller: 5" in done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(atlas_cli.__file__).parents[2])}


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "qat_ste.app.atlas_cli", *arguments, f"atlas.output={folder}"]
    return subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True)  # fmt: skip


def until_cells(folder: Path, process: subprocess.Popen) -> list[Path]:
    deadline = time.monotonic() + 120
    while not (found := sorted((folder / "cells").glob("*.json"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_what_cannot_be_written_is_told_in_a_line(qat_atlas):
    page = Path("outputs/atlas/atlas.html")
    page.mkdir(parents=True)
    run = qat_atlas(*SMALL, "atlas.estimators=[tanh]", "atlas.optimizers=[sgd]")
    (line,) = run.err.splitlines()
    assert run.code == 1
    assert line.startswith(f"qat-atlas: {page}: Is a directory; the same command goes on from there: qat-atlas ")
    page.rmdir()
    assert qat_atlas(*SMALL, "atlas.estimators=[tanh]", "atlas.optimizers=[sgd]").code == 0


@pytest.mark.slow
def test_a_folder_is_one_process_s_at_a_time(qat_atlas):
    code = "import sys; from pathlib import Path; from qat_ste.base.files import locked\n"
    code += "with locked(Path(sys.argv[1]), 'atlas.output'): print('locked', flush=True); sys.stdin.read()"
    folder = Path("outputs/atlas")
    folder.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    run = qat_atlas(*SMALL, "atlas.estimators=[tanh]", "atlas.optimizers=[sgd]")
    assert (run.code, list(folder.iterdir())) == (2, [folder / ".lock"])
    assert f"in use by process {holder.pid} on {os.uname().nodename}" in run.err
    holder.communicate("")
    assert holder.returncode == 0


LONG = ("atlas.steps=30", "atlas.smaller=5", "atlas.seeds=[1,2]", "atlas.workers=2", *GRID)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The cells of the atlas undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "atlas"
    assert start(folder, *LONG).wait(timeout=500) == 0
    return read(folder)["cells"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_cut_off_and_started_again(whole, tmp_path, number, code):
    """Whether the launching process alone gets the signal (SIGKILL) or all do; no worker stays behind."""
    process = start(tmp_path / "cut", *LONG)
    before = until_cells(tmp_path / "cut", process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    if code > 0:
        assert "the same command goes on from there: qat-atlas " in err
        assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not (tmp_path / "cut" / "atlas.json").exists()
    times = [path.stat().st_mtime_ns for path in before]
    again = start(tmp_path / "cut", *LONG)
    _, err = again.communicate(timeout=500)
    assert again.returncode == 0, err
    assert [path.stat().st_mtime_ns for path in before] == times
    assert read(tmp_path / "cut")["cells"] == whole

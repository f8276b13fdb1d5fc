"""``qat-tune`` in this process: what it writes, what it trains again, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qat_ste.app import tune_cli
from tests.app.in_process import in_process
from tests.app.killing import kill_after
from tests.conftest import every_fifth

SMALL = ("tune.seeds=1", "tune.workers=1", "train.steps=4", "train.batch_size=16", "optimizer=sgd")
TWO = ("estimator=tanh,ste", "tune.lr=[1e-3,1e-2]", "tune.extensions=1")


@pytest.fixture
def qat_tune(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    return in_process("qat-tune", tune_cli.main, monkeypatch, capsys)


def read(folder: str = "outputs/tune") -> dict:
    return json.loads(Path(folder, "tune.json").read_text())


def times(folder: str = "outputs/tune") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(folder, "cells").iterdir()}


def test_a_study_is_written_and_what_is_there_is_not_trained_again(qat_tune):
    run = qat_tune(*SMALL, *TWO)
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[0] == "6 trainings: the grid"
    assert run.out.splitlines()[-1].endswith("outputs/tune/tune.html")
    study = read()
    assert list(study["estimators"]) == ["tanh", "ste (again)"]
    assert (study["grid"], study["seeds"], study["metric"], study["margin"]) == ([0.001, 0.01], [1], "accuracy", 0.01)
    assert not [cell for cell in study["cells"] if cell["fault"]]
    again = [cell for cell in study["cells"] if cell["estimator"] == "ste (again)"]
    ste = {cell["lr"]: cell for cell in study["cells"] if (cell["estimator"], cell["role"]) == ("ste", "grid")}
    assert again
    assert all({**cell, "estimator": "ste"} == ste[cell["lr"]] for cell in again)

    before = times()
    assert qat_tune(*SMALL, *TWO).code == 0
    assert read() == study
    assert times() == before
    more = qat_tune(*SMALL, "estimator=tanh", *TWO[1:], "tune.seeds=2")
    assert more.code == 0
    after = times()
    assert {name: after[name] for name in before} == before
    assert {cell["seed"] for cell in read()["cells"]} == {1, 2}
    assert qat_tune(*SMALL, *TWO, "train.steps=5").code == 0
    assert read()["cells"][0]["train_loss"] != study["cells"][0]["train_loss"], "another training"


def test_validation_data_are_held_out(qat_tune, monkeypatch):
    """The rate is chosen on images that are neither trained nor tested on: their own accuracies."""
    assert qat_tune(*SMALL, "estimator=ste", "tune.lr=[1e-3,1e-2]", "tune.extensions=0", "train.steps=30").code == 0
    cells = [cell for cell in read()["cells"] if cell["estimator"] == "ste"]
    for cell in cells:
        assert cell["validation_accuracy"] * 287 == pytest.approx(round(cell["validation_accuracy"] * 287))
        assert cell["test_accuracy"] * 360 == pytest.approx(round(cell["test_accuracy"] * 360))
    assert len({cell["validation_loss"] for cell in cells} | {cell["test_loss"] for cell in cells}) == 4


def test_entries_and_dry_run(qat_tune):
    run = qat_tune(*SMALL, 'tune.estimators=["tanh estimator.k=9",dsq]', "tune.lr=[1e-3,1e-2]", "--dry-run")
    assert (run.code, run.err) == (0, "")
    assert run.out == "6 networks of seed 1 (ste, tanh, k=9, dsq)\n"
    assert not Path("outputs").exists()
    assert qat_tune(*SMALL, "--dry-run").out == "8 networks of seed 1 (ste, tanh)\n2 networks of seed 1 (tanh)\n"


@pytest.mark.parametrize(
    ("override", "told"),
    every_fifth([
        ("estimator=tanhh", "tune.estimators=[tanhh]: no such estimator, allowed are acos, approx_sign, arctan, "),
        ('tune.estimators=["tanh estimator.k=0"]', "tune.estimators=[tanh estimator.k=0]: estimator.k=0: must be a positive finite number; "),
        ("estimator=tanh tune.estimators=[dsq]", "estimator=tanh: the estimators are given twice; "),
        ("estimator.k=3", "estimator.k=3: an entry has the keys of its estimator, for example 'tune.estimators=[\"tanh estimator.k=9\"]'"),
        ("optimizer=sgd,adam", "optimizer=sgd,adam: a study has one optimizer; call qat-tune once for each, "),
        ("counterparts=[ste]", "counterparts=[ste]: qat-tune does not take counterparts, metrics., "),
        ("train.seed=3", "train.seed=3: qat-tune does not take counterparts, "),
        ("tune.lr=[1e-3]", "tune.lr=[0.001]: must be null or a list of different positive numbers, at least 2; for example "),
        ("tune.lr=[1e-3,1e-3]", "tune.lr=[0.001,0.001]: must be null or a list of different positive numbers, at least 2; "),
        ("tune.seeds=0", "tune.seeds=0: must be a whole number from 1 to 1000; for example tune.seeds=5"),
        ("tune.metric=f1", "tune.metric=f1: must be null or one of accuracy, loss; for example tune.metric=loss"),
        ("tune.margin=0", "tune.margin=0.0: must be a number between 0 and 1, both excluded; for example tune.margin=0.01"),
        ("tune.extension=1", "tune.extension=1: there is no such key; did you mean tune.extensions=1?"),
        ("train.batch_size=1400", "train.batch_size=1400: must be from 1 to 1150, the number of images, without the validation split"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib: must be slurm or submitit_local; tune.workers sets the processes of this machine"),
    ]),
)  # fmt: skip
def test_bad_input_is_one_line(qat_tune, override, told):
    overrides = override.split() if override.startswith("estimator=tanh ") else [override]
    kept = [each for each in SMALL if each.partition("=")[0] not in override]
    run = qat_tune(*kept, *overrides, "--dry-run")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"qat-tune: {told}")
    assert run.err.count("\n") == 1


def test_a_data_set_without_validation_is_refused_by_name(qat_tune, tmp_path, monkeypatch):
    (tmp_path / "noval.py").write_text(
        "from qat_ste.data.digits import digits\n\n\nclass Plain:\n    def __init__(self):\n        own = digits()\n"
        "        names = 'num_classes', 'image_shape', 'fingerprint', 'skipped', 'prepare', 'train_batches', "
        "'test_batches'\n        vars(self).update({name: getattr(own, name) for name in names})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = qat_tune(*SMALL, "dataset._target_=noval.Plain", "--dry-run")
    assert run.code == 2
    assert run.err == (
        "qat-tune: dataset: Plain must have the methods with_validation and validation_batches, as "
        "qat_ste.data.dataset.Dataset describes them\n"
    )


def test_a_training_that_diverges_is_a_result(qat_tune):
    run = qat_tune(*SMALL, "estimator=tanh", "tune.lr=[1e-2,1e20]", "tune.extensions=0")
    assert (run.code, run.err) == (0, "")
    faults = {cell["lr"]: cell["fault"] for cell in read()["cells"] if cell["role"] == "grid"}
    assert faults[0.01] is None
    assert faults[1e20].startswith("the loss is ")
    before = times()
    assert qat_tune(*SMALL, "estimator=tanh", "tune.lr=[1e-2,1e20]", "tune.extensions=0").code == 0
    assert times() == before, "it would diverge again"


@pytest.mark.slow
def test_killed_and_continued(qat_tune, tmp_path):
    """kill -9 half-way; the same command goes on, and the study is the one of an uninterrupted command."""
    arguments = ("tune.seeds=2", "tune.workers=2", "train.steps=60", "optimizer=sgd", "tune.together=1", *TWO)
    whole = ("tune.output=whole",)
    assert qat_tune(*arguments, *whole, "tune.workers=1", "tune.together=8").code == 0
    command = [sys.executable, "-m", "qat_ste.app.tune_cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kill_after(process, Path("outputs/tune"), "cells/*.json")
    before = times()
    assert not Path("outputs/tune/tune.json").exists()
    assert 1 <= len(before) < 12
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert {name: times()[name] for name in before} == before
    assert read()["cells"] == read("whole")["cells"]


@pytest.mark.slow
def test_on_a_cluster(qat_tune):
    """submitit's local cluster in place of SLURM's: the same cells as on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'qat-ste[slurm]'")
    arguments = (*SMALL, *TWO, "tune.extensions=0", "tune.together=2")
    assert qat_tune(*arguments, "tune.output=here").code == 0
    run = qat_tune(*arguments, "tune.output=there", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5")
    assert (run.code, run.err) == (0, "")
    assert read("there")["cells"] == read("here")["cells"]
    assert list(Path("there/submitit").glob("*_result.pkl"))


@pytest.mark.slow
def test_text_is_tuned_by_its_loss(qat_tune):
    run = qat_tune(
        "experiment=gpt_muon", "tune.seeds=1", "tune.workers=1", "train.steps=3", "tune.lr=[1e-3,1e-2]",
        "dataset.validation_tokens=640", "tune.extensions=0", "train.pretrain_steps=2",
    )  # fmt: skip
    assert (run.code, run.err) == (0, "")
    study = read()
    assert (study["metric"], study["unit"], list(study["estimators"])) == ("loss", "bits per byte", ["tanh"])
    run = qat_tune(
        "dataset=text", "model=gpt", "optimizer=adamw", "tune.metric=accuracy", "tune.seeds=1", "tune.workers=1",
        "train.steps=2", "tune.lr=[1e-3,1e-2]", "dataset.validation_tokens=640", "tune.extensions=0",
    )  # fmt: skip
    assert run.code == 0
    assert read()["metric"] == "accuracy", "of the next token, where it is asked for"


def test_what_the_first_batch_shows_is_refused_in_one_line(qat_tune, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(
        "import torch\n\nSHARED = torch.Generator()\n\n\nclass Odd(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(1, 10, 8)\n\n    def forward(self, images):\n"
        "        noise = torch.rand(len(images), 1, generator=SHARED) if self.training else 1\n"
        "        return self.conv(images).flatten(1) * noise\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = qat_tune(*SMALL, *TWO, "model._target_=odd.Odd")
    assert run.code == 2
    assert run.err.startswith("qat-tune: build_model must be ")
    assert run.err.count("\n") == 1

"""train.pretrain_steps: the float network is trained once for all runs that start from it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.app.killing import kill_after
from tests.app.test_run import numbers
from tests.app.test_sweep import start, sweep

FEW = ("train.steps=6", "metrics.every=3", "logger=none", "train.pretrain_steps=20")


def results(folder):
    found = numbers(json.loads((folder / "results.json").read_text()))
    return {key: found[key] for key in ("reference", "counterparts", "start")}


def test_the_second_run_takes_the_kept_start(qat_run, tmp_path):
    first, second = (qat_run(*FEW, f"paths.output={tmp_path}/out", folder=name) for name in "ab")
    assert first.code == second.code == 0, first.err
    assert len(list((tmp_path / "out" / "pretrained").iterdir())) == 1
    assert (first.folder / "metrics.jsonl").read_bytes() == (second.folder / "metrics.jsonl").read_bytes()
    assert results(first.folder) == results(second.folder)
    assert " ".join(first.out.split()).count("start: accuracy") == 1
    other = qat_run(*FEW[:-1], "train.pretrain_steps=21", f"paths.output={tmp_path}/out", folder="c")
    assert results(other.folder) != results(first.folder)
    assert len(list((tmp_path / "out" / "pretrained").iterdir())) == 2


def test_a_run_without_pretraining_says_nothing_of_the_start(qat_run):
    done = qat_run(*FEW[:-1])
    assert "start:" not in done.out
    assert "start" not in done.read("results.json")


@pytest.mark.slow
def test_a_sweep_trains_one_start_a_seed(tmp_path):
    output = tmp_path / "out"
    code, out, err = sweep(output, *FEW[1:], "train.steps=6,7", "estimator=tanh,ste", "train.seed=1,2")
    assert code == 0, out + err
    assert len(list((output / "pretrained").iterdir())) == 2


@pytest.mark.slow
def test_a_start_that_was_killed_is_continued(tmp_path):
    few = ("train.steps=6", "metrics.every=3", "logger=none", "train.pretrain_steps=200", "checkpoint.every_steps=25")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(whole, *few, f"hydra.run.dir={whole}/run").communicate(timeout=300)
    process = start(cut, *few, f"hydra.run.dir={cut}/run")
    kill_after(process, cut, "pretrained/*/checkpoint.pt")
    assert not (cut / "run" / "results.json").exists()
    out, _ = start(cut, *few, f"hydra.run.dir={cut}/run").communicate(timeout=300)
    assert results(cut / "run") == results(whole / "run"), out
    shutil.rmtree(cut / "pretrained")  # the control: without it the start is trained again, to the same end
    start(cut, *few, f"hydra.run.dir={cut}/again").communicate(timeout=300)
    assert results(cut / "again") == results(whole / "run")

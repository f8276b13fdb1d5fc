"""What commit d01ffb8 left is read, skipped and continued; a new option makes no other run of it."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from qat_ste.app import atlas_cli, report_cli
from qat_ste.base import run_config
from tests.conftest import ROOT, command

KEPT = ROOT / "tests" / "kept"
RUN = (f"--config-dir={KEPT / 'conf'}", "model=tiny", "train.steps=40", "train.steps_per_epoch=10", "metrics.every=5",
       "logger=none")  # fmt: skip
NOT_NUMBERS = ("equivalence_reason", "config", "versions", "cpu_count", "wall_seconds", "command", "choices", "metrics")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A copy of the kept folders, which stay as they are, in the current folder."""
    shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    monkeypatch.syspath_prepend(str(KEPT))
    threads = torch.get_num_threads()
    torch.set_num_threads(json.loads((KEPT / "machine.json").read_text())["threads"])
    yield tmp_path / "kept"
    torch.set_num_threads(threads)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def own_machine():
    """Whether this is a machine like the one that left the folders: others sum in another order."""
    made = json.loads((KEPT / "machine.json").read_text())
    version, capability = torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability()
    return made == {"torch": version, "capability": capability, "threads": torch.get_num_threads()}


def test_a_finished_run_is_known_as_done(kept):
    done = command(*RUN, "hydra.run.dir=finished")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("finished already:")


def test_a_cut_off_run_is_continued_bit_for_bit(kept):
    done = command(*RUN, "hydra.run.dir=cut_off")
    assert done.code == 0, done.err
    assert "resumes after step 20" in done.out
    found, expected = rows(kept / "cut_off"), rows(kept / "finished")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    results = [json.loads((kept / name / "results.json").read_text()) for name in ("cut_off", "finished")]
    numbers, known = ({key: value for key, value in of.items() if key not in NOT_NUMBERS} for of in results)
    for verdict in (numbers["verdict"], known["verdict"]):  # of its texts a later version may have others
        verdict.pop("statement")
        verdict.pop("outcome", None)
    done_before = [row["step"] <= 20 for row in expected]
    assert found[: sum(done_before)] == expected[: sum(done_before)]
    if own_machine():
        assert found == expected
        assert numbers == known
    for now, then in zip(found, expected, strict=True):  # rounding is another on another processor, for 20 small steps
        assert now == pytest.approx(then, rel=1e-2, abs=1e-6)


def test_a_sweep_is_skipped(kept):
    done = command("-m", *RUN, "train.seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert "2 skipped" in done.out


def test_an_atlas_is_not_trained_again(kept, monkeypatch, capsys):
    def cells():
        return {path.name: path.stat().st_mtime_ns for path in (kept / "atlas" / "cells").iterdir()}

    written = cells()
    before = json.loads((kept / "atlas" / "atlas.json").read_text())["cells"]
    monkeypatch.setattr(sys, "argv", ["qat-atlas", "atlas.estimators=[tanh,ewgs]", "atlas.optimizers=[sgd,adam]",
                                      "atlas.seeds=[1,2]", "atlas.steps=10", "atlas.output=atlas"])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        atlas_cli.main()
    assert not ended.value.code, capsys.readouterr().err
    assert cells() == written
    after = json.loads((kept / "atlas" / "atlas.json").read_text())["cells"]
    for old, new in zip(before, after, strict=True):
        assert {key: new[key] for key in old} == old
        assert {new[key] for key in new.keys() - old.keys()} <= {None}, "newer keys have no value"


def test_all_of_it_is_reported(kept, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["qat-report", "finished", "sweep", "cut_off", "--output", "out"])
    report_cli.main()
    told = capsys.readouterr()
    assert "cut_off" in told.err
    assert "finished" not in told.err
    assert "sweep" not in told.err
    assert "seed" in (kept / "out" / "report.html").read_text()


def test_a_new_key_makes_another_run_only_where_it_differs_from_its_default():
    old = {"train": {"steps": 40}, "quantizer": {"bits": 2}}
    new = {"train": {"steps": 40, "accumulate": 1}, "quantizer": {"bits": 2, "levels": None}}
    assert run_config.differences(run_config.identity(old), run_config.identity(new)) == []
    new["train"]["accumulate"] = 2
    differ = run_config.differences(run_config.identity(old), run_config.identity(new))
    assert differ == [("train.accumulate", 1, 2)]

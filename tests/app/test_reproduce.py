"""The command for the paper's tables: what it costs, what it keeps of a run, and that nothing is trained twice."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.sweep.folders import Run, read_run
from scripts import reproduce
from scripts.reproduce import Planned, Speed
from scripts.run_records import keep, restore

LISTED = (
    "qat-run row={row} experiment={name} train.seed=42 'hydra.run.dir=\"/o/experiment={name},row={row}\"'"
    "  # {members} members x {steps} steps of 128"
)


def planned(row, members, steps):
    return reproduce.plan(LISTED.format(name="mnist_sgd", row=row, members=members, steps=steps))[0]


def test_the_runs_are_read_from_what_a_dry_run_lists():
    run = planned("default", 4, 400)
    assert run == Planned("default", "mnist_sgd", 42, "experiment=mnist_sgd,row=default", 4, 400, 128)
    assert run.record == "mnist_sgd-default-42.json"


def test_hours_are_members_times_steps_at_the_speed_of_the_experiment(capsys, tmp_path):
    runs = [planned("default", 4, 400), planned("scaledown", 2, 100_000), planned("bits_1", 4, 400)]
    (tmp_path / runs[2].record).touch()
    reproduce.print_cost(runs, {"mnist_sgd": reproduce.stated_speed("mnist_sgd")}, tmp_path)
    _, default, scaledown, bits, total, basis, *_ = capsys.readouterr().out.splitlines()
    assert default.split()[-5:] == ["train.seed=42", "4", "400", "128", f"{70 / 3600:.2f}"]
    assert scaledown.split()[-4:] == ["2", "100,000", "128", "2.43"]
    assert bits.endswith("done")
    assert total.split() == ["2", "of", "3", "runs,", "one", "after", "another", "2.45"]
    assert "mnist_sgd: 400 steps of 4 members in 70 s" in basis


def test_hours_of_an_experiment_without_a_measured_speed_are_unknown(capsys, tmp_path):
    assert math.isnan(reproduce.stated_speed("imagenet_sgd").seconds)
    reproduce.print_cost([planned("default", 4, 100)], {"mnist_sgd": Speed(math.nan, "not measured")}, tmp_path)
    _, run, total, basis, *_ = capsys.readouterr().out.splitlines()
    assert run.endswith("–") and total.endswith("–")
    assert "mnist_sgd: not measured." in basis


@pytest.mark.parametrize("setup", reproduce.SETUPS[:2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_experiments_on_mnist_state_their_speed(setup, optimizer):
    assert reproduce.stated_speed(f"{setup}_{optimizer}").seconds > 0


def test_dry_run_needs_no_launcher_plugin(monkeypatch, tmp_path, mnist_folder, capsys):
    """Without any plugin the package ``hydra_plugins`` is missing, and looking up a module in it raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hydra_plugins", None)
    monkeypatch.delitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", raising=False)
    with pytest.raises(ModuleNotFoundError):
        find_spec("hydra_plugins.hydra_joblib_launcher")
    assert not reproduce._has_joblib_launcher()
    monkeypatch.setattr(reproduce, "TIERS", (("default",),))
    arguments = ["mnist", "--short", "--dry-run", "--seeds", "1", "--records", "kept", f"paths.data={mnist_folder}"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    GlobalHydra.instance().clear()
    assert reproduce.main() == 0
    out = capsys.readouterr().out
    assert "mnist_sgd" in out and "mnist_adam" in out and "2 of 2 runs, one after another" in out
    assert not list(tmp_path.rglob("*.json")), "a dry run trains nothing"


def test_a_record_makes_a_run_folder_that_says_the_same(finished_run, tmp_path):
    keep(finished_run, tmp_path / "records" / "a.json", weights=20)
    restore(tmp_path / "records" / "a.json", tmp_path / "again")
    was, now = read_run(finished_run), read_run(tmp_path / "again")
    assert isinstance(now, Run) and now.members == was.members and now.verdict == was.verdict
    files, original = RunFiles(tmp_path / "again"), RunFiles(finished_run)
    key = "ste/weight_alignment_error"
    assert files.series(key)[-1] == pytest.approx(original.series(key)[-1], rel=1e-4)
    assert 0 < len(files.weights("ste/final")) <= 20
    assert str(tmp_path) not in (tmp_path / "records" / "a.json").read_text(), "no path of the machine"
    keep(tmp_path / "again", tmp_path / "records" / "b.json", weights=20)
    assert (tmp_path / "records" / "b.json").read_text() == (tmp_path / "records" / "a.json").read_text()


def test_a_record_does_not_replace_a_run(finished_run, tmp_path):
    keep(finished_run, tmp_path / "a.json")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text("{}")
    restore(tmp_path / "a.json", folder)
    assert (folder / "results.json").read_text() == "{}"


def test_what_has_a_record_is_not_trained_again(finished_run, tmp_path, monkeypatch, capsys):
    """A stand-in for the sweep lists two runs and "trains" those without results, of which the second fails once."""
    trained, failing = [], {"second"}

    def sweep(overrides):
        names = ["first", "second"]
        if "dry_run=true" in overrides:
            for name, experiment in zip(names, ("mnist_sgd", "mnist_adam"), strict=True):
                line = f"qat-run row=default experiment={experiment} train.seed=1 'hydra.run.dir=\"o/{name}\"'  # 4 members x 9 steps of 8"
                sys.stdout.write(f"{line}\n")
            return 0
        for name in names:
            folder = Path("out", name)
            if not (folder / "results.json").exists():
                trained.append(name)
                if name in failing:
                    failing.remove(name)
                    return 1
                shutil.copytree(finished_run, folder)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "_sweep", sweep)
    monkeypatch.setattr(reproduce, "TIERS", (("default",),))
    monkeypatch.setattr(reproduce, "timed_speeds", lambda overrides: {})
    monkeypatch.setattr("qat_ste.report.sweep.gallery._planned", lambda groups: [])
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "mnist", "--output", "out", "--records", "kept"])
    for code, so_far in ((1, ["first", "second"]), (0, ["first", "second", "second"])):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "mnist", "--output", "out", "--records", "kept"])
        assert reproduce.main() == code
        assert trained == so_far
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        "mnist_adam-default-1.json",
        "mnist_sgd-default-1.json",
    ]
    shutil.rmtree("out")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "mnist", "--output", "out", "--records", "kept"])
    assert reproduce.main() == 0
    assert trained == ["first", "second", "second"], "nothing is trained again without its folder"
    assert "0 of 2 runs" in capsys.readouterr().out
    assert json.loads(Path("out", "first", "status.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_first_steps_time_this_machine(mnist_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = ["hydra/launcher=basic", "row=default", "experiment=mnist_sgd", f"paths.data={mnist_folder}"]
    (speed,) = reproduce.timed_speeds(sweep).values()
    assert speed.seconds > 0 and re.fullmatch(r"\d+ steps on this machine", speed.source)

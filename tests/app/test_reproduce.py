"""The command for the paper's tables: what it costs, and that it needs no plugin."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
from hydra.core.global_hydra import GlobalHydra

from scripts import reproduce

LINE = (
    "qat-run row={row} experiment={name} train.seed=42 'hydra.run.dir=\"/o/experiment={name},row={row}\"'"
    "  # {members} members x {steps} steps of 128"
)


def test_hours_are_members_times_steps_at_the_speed_of_the_experiment(capsys):
    lines = [
        LINE.format(name="mnist_sgd", row="default", members=4, steps=400),
        LINE.format(name="mnist_sgd", row="scaledown", members=2, steps=100_000),
    ]
    reproduce.print_cost("\n".join(lines))
    _, default, scaledown, total, basis, *_ = capsys.readouterr().out.splitlines()
    assert default.split() == ["mnist_sgd", "row=default", "4", "400", "128", f"{70 / 3600:.2f}"]
    assert scaledown.split() == ["mnist_sgd", "row=scaledown", "2", "100,000", "128", "2.43"]
    assert total.split() == ["2", "runs,", "one", "after", "another", "2.45"]
    assert "mnist_sgd: 400 steps of 4 members in 70 s." in basis


def test_hours_of_an_experiment_without_a_measured_speed_are_unknown(capsys):
    reproduce.print_cost(LINE.format(name="imagenet_sgd", row="default", members=4, steps=100))
    _, run, total, basis, *_ = capsys.readouterr().out.splitlines()
    assert run.endswith("–") and total.endswith("–")
    assert "imagenet_sgd: not measured." in basis


@pytest.mark.parametrize("setup", reproduce.SETUPS[:2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_experiments_on_mnist_state_their_speed(capsys, setup, optimizer):
    reproduce.print_cost(LINE.format(name=f"{setup}_{optimizer}", row="default", members=3, steps=100))
    assert "not measured" not in capsys.readouterr().out


def test_dry_run_needs_no_launcher_plugin(monkeypatch, tmp_path, mnist_folder, capsys):
    """Without any plugin the package ``hydra_plugins`` is missing, and looking up a module in it raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hydra_plugins", None)
    monkeypatch.delitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", raising=False)
    with pytest.raises(ModuleNotFoundError):
        find_spec("hydra_plugins.hydra_joblib_launcher")
    assert not reproduce._has_joblib_launcher()
    monkeypatch.setattr(reproduce, "ROWS", ("default",))
    arguments = ["mnist", "--short", "--dry-run", "--seeds", "1", f"paths.data={mnist_folder}"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *arguments])
    GlobalHydra.instance().clear()
    assert reproduce.main() == 0
    out = capsys.readouterr().out
    assert "mnist_sgd" in out and "mnist_adam" in out and "2 runs, one after another" in out
    assert not list(tmp_path.rglob("*.json")), "a dry run trains nothing"

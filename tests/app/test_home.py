"""A leading ``~`` is the home folder wherever a command takes a path, in quotes and in YAML files too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from qat_ste.app import atlas_cli, estimator_cli, report_cli
from qat_ste.app.value_checks import expand_home
from tests.conftest import command

FEW = ("train.steps=2", "metrics.every=1", "train.steps_per_epoch=2", "logger=none")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder; at the end the current folder must not have a folder called ``~``."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").glob("~*"))


def call(monkeypatch, main, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        main()
    except SystemExit as ended:
        assert not ended.code


@pytest.mark.parametrize(
    ("override", "pattern"),
    [('paths.output="~/runs"', "runs/*/*/"), ("paths.output='~/a b'", "a b/*/*/"), ('hydra.run.dir="~/run"', "run/")],
)
def test_run_folders(home, override, pattern):
    run = command(*FEW, override)
    assert run.code == 0, run.err
    (folder,) = home.glob(pattern)
    assert run.out.splitlines()[-1] == str(folder / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "pattern"), [('paths.output="~/runs"', "runs/sweeps/*/*/"), ('hydra.sweep.dir="~/a b"', "a b/*/")]
)
def test_folders_of_sweeps(home, override, pattern):
    run = command("-m", *FEW, "estimator=formula", "estimator.expression='2 + u','2 + u*u'", override)
    assert run.code == 0, run.err
    assert len(list(home.glob(f"{pattern}report.html"))) == 2
    again = command("-m", *FEW, "estimator=formula", "estimator.expression='2 + u','2 + u*u'", override)
    assert again.out.splitlines()[-1].startswith("2 skipped: "), again.out


@pytest.mark.parametrize("words", [("--config-dir=~/conf",), ("--config-dir", "~/conf"), ("-cd", "~/conf")])
@pytest.mark.parametrize("sweep", [False, True])
def test_yaml_files_of_the_user(home, words, sweep):
    (home / "conf" / "experiment").mkdir(parents=True)
    (home / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\npaths: {output: ~/runs, data: ~/data}\nhydra: {run: {dir: ~/run}, sweep: {dir: ~/sweep}}\n"
    )
    words = ("-m", *words) if sweep else words
    run = command(*words, *FEW, "experiment=mine", "train.seed=3", "dry_run=true")
    assert (run.code, run.err) == (0, "")
    assert f'hydra.run.dir="{home}/sweep/' in run.out if sweep else f'hydra.run.dir="{home}/run"' in run.out


def test_folders_of_data(home):
    cfg = OmegaConf.create({"paths": {"data": "~/data"}, "dataset": {"root": "${paths.data}", "cache": "~/c", "n": 3}})
    expand_home(cfg)
    assert OmegaConf.to_container(cfg, resolve=True) == {
        "paths": {"data": f"{home}/data"}, "dataset": {"root": f"{home}/data", "cache": f"{home}/c", "n": 3},
    }  # fmt: skip
    run = command("dataset=imagenet", 'paths.data="~/data"', "dry_run=true", "logger=none")
    assert run.err.startswith(f"qat-run: paths.data={home}/data: {home}/data has no folder train")
    run = command("dataset=imagenet", 'dataset.root="~/data"', "dry_run=true", "logger=none")
    assert run.err.startswith(f"qat-run: dataset.root={home}/data: {home}/data has no folder train")


@pytest.mark.slow
def test_the_other_commands(home, monkeypatch, capsys):
    (home / "conf").mkdir()
    few = ("atlas.estimators=[tanh]", "atlas.optimizers=[sgd]", "atlas.seeds=[1]", "atlas.steps=2", "atlas.workers=1")
    call(monkeypatch, atlas_cli.main, "--config-dir=~/conf", 'atlas.output="~/atlas"', *few)
    assert (home / "atlas" / "atlas.html").is_file()
    call(monkeypatch, estimator_cli.main, "tanh", "--config-dir=~/conf", "--output=~/card.png")
    assert (home / "card.png").is_file()
    assert command(*FEW, 'hydra.run.dir="~/run"').code == 0
    capsys.readouterr()
    call(monkeypatch, report_cli.main, "~/run", "--output=~/report", "--summary=~/summary.json")
    assert capsys.readouterr().out.splitlines()[-1] == str(home / "report" / "report.html")
    assert (home / "summary.json").is_file()
    call(monkeypatch, report_cli.main, "--diff", "~/run", "~/run")


def test_without_a_home_the_path_stays(monkeypatch, tmp_path):
    cfg = OmegaConf.create({"paths": {"data": "~nobody-here/data"}, "dataset": {}})
    expand_home(cfg)
    assert cfg.paths.data == "~nobody-here/data"

"""The environment of torchrun and srun, whole and in part; launchers of sweeps whose package is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qat_ste.app import run_cli as cli
from qat_ste.app.job import outer_rank
from tests.conftest import SHORT, command

RANKS = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "50007",
        "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}  # fmt: skip
NAMES = (*RANKS, *SRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
ADVICE = "torchrun and srun set it; for one process, unset RANK and WORLD_SIZE"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets variables of a launcher; all others are unset afterwards and ``scontrol`` is not installed."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored at the end, whatever the test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))

    def change(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set: it must be a whole number from 0 to 1."),
        ({"RANK": "0"}, "WORLD_SIZE is not set: it must be a whole number of at least 1."),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: it must be a whole number of at least 1."),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: it must be a whole number of at least 1."),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: it must be a whole number of at least 1."),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0: it must be a whole number of at least 1."),
        (RANKS | {"RANK": "2"}, "RANK=2: it must be a whole number from 0 to 1."),
        (RANKS | {"RANK": "-1"}, "RANK=-1: it must be a whole number from 0 to 1."),
        (RANKS | {"RANK": ""}, "RANK is not set: it must be a whole number from 0 to 1."),
        (RANKS | {"RANK": "a\nb"}, "RANK=a b: it must be a whole number from 0 to 1."),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1: it must be a whole number from 0 to 0."),
        (RANKS | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set: it must be the host of rank 0."),
        (RANKS | {"MASTER_PORT": ""}, "MASTER_PORT is not set: it must be a whole number from 1 to 65535."),
        (RANKS | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536: it must be a whole number from 1 to 65535."),
        (RANKS | {"LOCAL_RANK": "x"}, "LOCAL_RANK=x: it must be a whole number of at least 0."),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: it must be a whole number of at least 0."),
        (SRUN, "MASTER_ADDR is not set: it must be the host of rank 0, since scontrol cannot name it here."),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x: it must be a whole number of at least 1."),
        (SRUN | {"SLURM_PROCID": ""}, "SLURM_PROCID is not set: it must be a whole number from 0 to 3."),
        (SRUN | {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set: it must be a whole number of at least 0."),
    ],
)  # fmt: skip
def test_half_an_environment_is_refused_in_one_line(environment, variables, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment(variables)
    run = command(*SHORT, "logger=none")
    assert (run.code, run.out, run.err) == (2, "", f"qat-run: {message} {ADVICE}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"},
                                       {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": ""}, {"MASTER_ADDR": "localhost"}])  # fmt: skip
def test_a_single_process_is_no_rank(environment, variables):
    environment(variables)
    assert outer_rank() is None


def test_a_whole_environment_gives_the_rank(environment):
    environment(RANKS)
    assert outer_rank() == 1


@pytest.mark.parametrize("scontrol", [None, "exit 1", "echo node1; echo node2"])
def test_srun_needs_scontrol_only_without_an_address(environment, scontrol, tmp_path):
    if scontrol:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
        (tmp_path / "scontrol").chmod(0o755)
    names_hosts = scontrol is not None and "node1" in scontrol
    environment(SRUN if names_hosts else SRUN | {"MASTER_ADDR": "node1"})
    assert outer_rank() == 3
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1",
                "MASTER_PORT": "30007"}  # fmt: skip
    assert {name: os.environ[name] for name in expected} == expected


@pytest.mark.slow
def test_srun_in_a_container_without_scontrol_trains(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "PATH": str(tmp_path), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(os.getpid())}
    words = [sys.executable, "-m", "qat_ste.app.run_cli", *SHORT, "logger=none", "hydra.run.dir=run"]
    ranks = [
        subprocess.Popen(
            words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for rank in ranks:
        _, err = rank.communicate(timeout=200)
        assert rank.returncode == 0, err
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("laptop", "there is no hydra/launcher=joblib here: pip install -e '.[joblib]'"),
        ("slurm", "there is no hydra/launcher=submitit_slurm here: pip install -e '.[slurm]'"),
        ("mine", "there is no hydra/launcher=submitit_slurm here: pip install -e '.[slurm]'"),
        ("ray", "there is no hydra/launcher=ray here: no plugin of Hydra that is installed has it"),
    ],
)
def test_a_launcher_without_its_package_names_the_package(tmp_path, launcher, message):
    plugins = tmp_path / "modules" / "hydra_plugins"
    plugins.mkdir(parents=True)
    (plugins / "__init__.py").touch()  # hides the installed plugins, which lie in a namespace package
    config = tmp_path / "conf" / "hydra" / "launcher"
    config.mkdir(parents=True)
    (config / "mine.yaml").write_text("defaults: [slurm]\npartition: big\n")
    environment = os.environ | {"PYTHONPATH": f"{Path(cli.__file__).parents[2]}:{plugins.parent}"}
    words = ("-m", "--config-dir=conf", f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2", "estimator=formula",
             "estimator.expression=2,3", "model.size=x")  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "qat_ste.app.run_cli", *words], capture_output=True, text=True,
                          env=environment, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0] == f"qat-run: hydra/launcher={launcher}: {message}"
    assert len(lines) == 2 and lines[1].startswith("qat-run: model.size=x: there is no such key")

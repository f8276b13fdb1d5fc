"""Help, printed configuration, completion: quick, and without torch."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from qat_ste.app import run_cli as cli
from qat_ste.app.compose import config_dir
from qat_ste.app.job import quoted
from qat_ste.app.sweep import folder_name
from tests.app.test_configs import composed

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
SPY = """
import sys
from qat_ste.app import run_cli as cli
sys.argv = ["qat-run", *sys.argv[1:]]
code = 0
try:
    cli.main()
except SystemExit as done:
    code = done.code
heavy = {"torch", "torchvision", "wandb", "matplotlib", "sklearn", "scipy", "numpy"}
print("EXIT", code or 0, "HEAVY", sorted(heavy & set(sys.modules)))
"""


def call(*arguments: str, **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SPY, *arguments], capture_output=True, text=True, timeout=60,
                          env=ENVIRONMENT | changes)  # fmt: skip


def used() -> float:
    """Seconds of processor time of the processes that ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime


@pytest.fixture(scope="module")
def torch_seconds() -> float:
    before = used()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return used() - before


@pytest.mark.parametrize("flag", ["--help", "--cfg=job"])
def test_help_and_configuration_import_nothing_heavy_and_are_quick(flag, torch_seconds):
    before = used()
    done = call(flag)
    assert done.stdout.rstrip().endswith("EXIT 0 HEAVY []"), done.stdout + done.stderr
    assert used() - before < torch_seconds, "quicker than to import torch on this machine"


@pytest.mark.slow
def test_what_only_some_runs_need_is_not_imported_to_tell_of_bad_input(tmp_path):
    done = call("train.steps=-1", f"hydra.run.dir={tmp_path}")
    assert done.stderr.startswith("qat-run: train.steps=-1: must be ")
    assert done.stdout == "EXIT 2 HEAVY ['numpy', 'torch']\n"


def test_help_shows_examples_that_compose():
    text = call("--help").stdout
    examples = [line.strip() for line in text.splitlines() if line.startswith("  qat-run ")]
    assert len(examples) == 4
    for example in examples[:3]:
        assert composed(*shlex.split(example)[1:])
    estimators = sorted(path.stem for path in (Path(config_dir()) / "estimator").glob("*.yaml"))
    assert {"acos", "ste", "tanh", "tent"} < set(estimators)
    assert f"estimator: {', '.join(estimators)}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_tab_completion():
    done = call("-sc", "query=bash", COMP_LINE="qat-run estimator=ta", COMP_POINT="20")
    assert done.stdout.split()[0] == "estimator=tanh"
    assert done.stdout.rstrip().endswith("EXIT 0 HEAVY []")
    assert call("-sc", "install=bash").stdout.strip()


def test_folder_names_tell_the_overrides_and_trouble_nobody():
    assert folder_name("estimator=tanh,optimizer=sgd") == "estimator=tanh,optimizer=sgd"
    assert folder_name("counterparts=[ste,jitter],x='a b'/../c") == "counterparts=-ste,jitter-,x=-a-b-..-c"
    assert folder_name("") == "default"
    long = [folder_name("a" * 500 + end) for end in "bc"]
    assert len(set(long)) == 2, "cut off, but not alike"
    assert all(len(name) < 128 for name in long), "W&B takes no longer group"


def test_run_folder_is_named_by_date_time_and_overrides(finished_run):
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", finished_run.parent.name)
    overrides = "logger=wandb,metrics.every=6,train.steps=24,train.steps_per_epoch=8"
    assert re.fullmatch(r"\d\d-\d\d-\d\d_" + re.escape(overrides), finished_run.name)


@pytest.mark.parametrize(
    "value", ["a\\b", 'a"b', 'a\\"b', "a\\", "a\\\\", 'c"d\\\\"', "a b'c\"d=e<f>,ü→[g]{h}$i\\j", "1-d*u**4"]
)
def test_hydra_takes_a_quoted_value_as_it_stands(value):
    parsed = OverridesParser.create().parse_override(quoted("hydra.run.dir", value))
    assert (parsed.key_or_group, parsed.value()) == ("hydra.run.dir", value)

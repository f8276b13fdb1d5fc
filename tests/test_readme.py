"""The examples of the README run, and its pictures and commands exist."""

from __future__ import annotations

import re
from functools import partial

import pytest
from torchvision.models.resnet import BasicBlock, ResNet

from tests.conftest import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text() if README.exists() else "", re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(len(BLOCKS))])
@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["small", "as it stands"])
def test_python_block_runs(block, small, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if small:  # half the blocks of a ResNet-18
        monkeypatch.setattr("torchvision.models.resnet18", partial(ResNet, BasicBlock, [1, 1, 1, 1]))
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_there_are_examples_and_the_pictures_exist():
    text = README.read_text()
    assert len(BLOCKS) >= 2
    assert len(text.splitlines()) < 200
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture
    for command in ("qat-run estimator=tanh optimizer=sgd", ".venv/bin/pytest"):
        assert (
            f"python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/{command.removeprefix('.venv/bin/')}"
            in text
        )


def test_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.splitlines()) <= 90
    paths = re.findall(r"(?:qat_ste|conf|docs|scripts|tests)/[\w/.]*\w(?![\w/<])", text)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path
    for room in re.findall(r"^\d  ([\w/ ]+/)", text, re.MULTILINE):
        assert all((ROOT / "qat_ste" / name).is_dir() for name in room.split()), room

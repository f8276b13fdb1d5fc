"""What the README shows runs, and says what was measured."""

from __future__ import annotations

import re

import pytest

from .conftest import ROOT

README = ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text() if README.exists() else "", re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {number}" for number in range(len(BLOCKS))])
def test_python_block_runs(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
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

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

from qat_ste import cli

from ..conftest import SHORT  # noqa: F401  # the tests here take it from this file


@pytest.fixture
def qat_run(tmp_path, monkeypatch, capsys):
    """Runs the command in this process; gives exit code, streams, and the run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def call(*arguments: str, folder: str = "run") -> SimpleNamespace:
        run = tmp_path / folder
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["qat-run", *arguments, f"hydra.run.dir={run}"])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()

        def read(name: str):
            return json.loads((run / name).read_text())

        return SimpleNamespace(code=code, out=out, err=err, folder=run, read=read)

    return call

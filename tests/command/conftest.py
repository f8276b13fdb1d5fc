from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hydra.core.global_hydra import GlobalHydra

from qat_ste import cli

from ..conftest import SHORT  # noqa: F401  # the tests here take it from this file


def command(*arguments: str) -> SimpleNamespace:
    """Runs the command in this process, which has torch already; gives exit code and streams."""
    GlobalHydra.instance().clear()
    code, out, err = 0, io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["qat-run", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def qat_run(tmp_path, monkeypatch):
    """Runs the command in this process; gives exit code, streams, and the run folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def call(*arguments: str, folder: str = "run") -> SimpleNamespace:
        run = tmp_path / folder
        done = command(*arguments, f"hydra.run.dir={run}")

        def read(name: str):
            return json.loads((run / name).read_text())

        return SimpleNamespace(**vars(done), folder=run, read=read)

    return call

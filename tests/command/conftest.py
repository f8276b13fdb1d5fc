from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra

from qat_ste import cli

SHORT = ("train.steps=24", "metrics.every=6", "train.steps_per_epoch=8")


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


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """One short run of the installed command with offline W&B."""
    output = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "qat_ste.cli", *SHORT, "logger=wandb", f"paths.output={output}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, cwd=output, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = output.glob("*/*")
    (folder / "stdout.txt").write_text(done.stdout)
    return folder

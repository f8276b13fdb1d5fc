"""What is around a run and goes wrong: W&B's service, homes, terminals, folders, signals. Each was met by the campaign."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from rich.console import Console

from qat_ste.app import sweep as sweep_job
from qat_ste.app.run import StopRequest
from qat_ste.loggers import wandb as wandb_logger
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.loggers.wandb import WandbLogger
from tests.conftest import SHORT, command

RESULTS = {"reference": {"test_loss": 1.0}, "counterparts": {}, "verdict": {"statement": "It mattered."}, "metrics": {}}


def test_a_service_that_died_is_left_alone_from_then_on(monkeypatch, caplog):
    calls = []

    def broken(*_):
        calls.append("log")
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(wandb, "teardown", lambda: calls.append("teardown"))
    logger = WandbLogger.__new__(WandbLogger)
    logger._run = SimpleNamespace(log=broken)
    logger.log_row({"step": 1})
    logger.log_row({"step": 2})
    logger.close(0)
    assert calls == ["log", "teardown"], "else W&B meets it again at the exit, with a traceback"
    assert caplog.messages == ["W&B is left out from here on: Connection lost"]


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_without_a_home_the_service_keeps_its_log_in_the_run_folder(monkeypatch, tmp_path, home):
    for name in ("XDG_CACHE_HOME", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(WandbLogger, "_start", lambda *_: None)
    WandbLogger(tmp_path, "name", {})
    assert "WANDB_CACHE_DIR" not in os.environ
    monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
    monkeypatch.setenv("WANDB_CACHE_DIR", "")  # put back afterwards
    WandbLogger(tmp_path, "name", {})
    assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "wandb" / "cache")
    assert not wandb_logger._can_be_made(Path("/proc/nowhere/wandb"))


@pytest.mark.parametrize("fault", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "hung up")])
def test_a_terminal_that_is_gone_ends_no_run(fault):
    class Gone:
        def write(self, _):
            raise fault

        def flush(self):
            raise fault

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    logger = TerminalLogger(10, 1.0, Console(file=Gone()))
    logger.say("line")
    logger.log_results(RESULTS)
    logger.close(0)


def test_a_closed_terminal_asks_for_an_end_and_nohup_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop and stop.exit_code == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(capsys):
    run = command(*SHORT, "logger=none", "hydra.run.dir=/proc/nowhere/run")
    assert run.code == 1
    assert run.err.startswith("qat-run: /proc/nowhere") and run.err.count("\n") == 1


def test_a_group_that_is_a_number_is_told_as_it_stands():
    run = command(*SHORT, "logger.group=7", "dry_run=true")
    assert (run.code, 'logger.group="7"' in run.out) == (0, True), run.err


def test_a_job_that_cannot_be_noted_is_run_all_the_same(tmp_path, caplog):
    sweep_job._note(tmp_path / "absent", "running")
    assert caplog.messages == [f"{tmp_path / 'absent' / 'job.json'}: No such file or directory"]

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from qat_ste.loggers import wandb as wandb_logger
from qat_ste.loggers.wandb import WandbLogger
from tests.app.test_configs import composed
from tests.conftest import ROOT, SHORT


def records(folder: Path) -> list[dict]:
    """The records of a run, read by W&B's own reader."""
    (log,) = folder.glob("wandb/*run-*/run-*.wandb")
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent)) or "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", log], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_offline_run_holds_configuration_curves_and_summary(finished_run):
    found = records(finished_run)
    results = json.loads((finished_run / "results.json").read_text())
    config = next(record["run"]["config"]["update"] for record in found if record["type"] == "run")
    config.pop("_wandb")
    assert config == results["config"]
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    history = [record["history"]["item"] for record in found if record["type"] == "history"]
    history = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history]
    assert history == [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert any("ste/weight_alignment_error" in row for row in history)
    summary: dict = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    assert summary["verdict"]["statement"] == results["verdict"]["statement"]
    assert summary["counterparts"]["ste"]["weight_alignment_error"] == pytest.approx(
        results["counterparts"]["ste"]["weight_alignment_error"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_without_key_or_network_still_finishes_and_says_so_once(qat_run, monkeypatch, key):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid" if key else "http://127.0.0.1:9")
    (monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv("WANDB_API_KEY", raising=False))
    run = qat_run(*SHORT)
    assert run.code == 0, run.err
    assert run.err.count("W&B") == 1, run.err
    assert "logging offline, `wandb sync` sends it later" in run.err
    assert any(record["type"] == "history" for record in records(run.folder))
    assert run.read("status.json")["status"] == "done"


def test_no_key_on_a_server_that_answers(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb_logger, "_unreachable", lambda: None)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        logger = WandbLogger(tmp_path, "name", {}, mode="online")
    logger.log_row({"step": 1, "a": None, "b": 2.0})
    logger.close(0)
    (message,) = [message for message in caplog.messages if "W&B" in message]
    assert message.startswith("W&B online is not to be had (No API key configured")


def test_disabled_writes_nothing(qat_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = qat_run(*SHORT)
    assert run.code == 0
    assert not list(run.folder.glob("wandb/*run-*"))


@pytest.mark.slow
def test_logger_none_writes_nothing(qat_run):
    assert not (qat_run(*SHORT, "logger=none").folder / "wandb").exists()


def test_a_failure_while_logging_leaves_the_run_alone(tmp_path, caplog):
    logger = WandbLogger(tmp_path, "name", {}, mode="offline")
    logger._run.finish()
    logger._run.log = lambda row: (_ for _ in ()).throw(OSError("disk full"))
    for step in range(3):
        logger.log_row({"step": step})
    logger.log_results({"config": {}, "verdict": {}})
    logger.close(0)
    assert [message for message in caplog.messages if "W&B" in message] == ["W&B is left out from here on: disk full"]


def test_close_does_not_wait_for_ever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 0.2)
    logger = WandbLogger(tmp_path, "name", {}, mode="disabled")
    never = threading.Event()
    logger._run.finish = lambda exit_code: never.wait()
    logger.close(0)
    never.set()
    assert "W&B did not finish" in caplog.messages[-1]


def test_the_agents_run_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    WandbLogger(tmp_path, "name", {}, mode="offline").close(0)
    assert [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")] == ["run-fromagent.wandb"]


def test_a_run_that_is_continued_has_the_id_of_its_file(tmp_path):
    """The folder's name does not end with it where an id has dashes, or where W&B was started twice in a second."""
    for name in ("offline-run-20261122_061916-my-run", "offline-run-20261122_061916-my-run-1"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-my-run.wandb").touch()
    (tmp_path / "wandb" / "latest-run").symlink_to(name)
    assert wandb_logger._run_id(tmp_path) == "my-run"


def test_every_run_of_the_agents_sweep_composes():
    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    assert sweep["command"][-2:] == ["qat-run", "${args_no_hyphens}"]
    for key, parameter in sweep["parameters"].items():
        for value in parameter["values"]:
            assert OmegaConf.select(composed(f"{key}={value}"), key) == value

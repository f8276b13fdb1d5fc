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
    """The records of an offline run, read by W&B's command."""
    (log,) = folder.glob("wandb/*run-*/run-*.wandb")
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent)) or "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", log], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history_of(logged: list[dict]) -> list[dict]:
    """The rows of a run's history, without W&B's own keys."""
    history = [record["history"]["item"] for record in logged if record["type"] == "history"]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in history]


def test_offline_run_holds_configuration_curves_and_summary(finished_run):
    logged = records(finished_run)
    results = json.loads((finished_run / "results.json").read_text())
    config = next(record["run"]["config"]["update"] for record in logged if record["type"] == "run")
    config.pop("_wandb")
    assert config == results["config"] | {"choices": results["choices"]}
    assert config["choices"].items() >= {"estimator": "tanh", "optimizer": "sgd", "dataset": "digits"}.items()
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    history = history_of(logged)[: len(rows)]
    assert history == [
        {"/".join(key.split("/")[::-1]): value for key, value in row.items() if value is not None} for row in rows
    ]
    charts = {key for row in history for key in row}
    assert {f"weight_alignment_error/{name}" for name in ("ste", "naive", "jitter")} <= charts
    assert {"step", "epoch", "lr", "train_loss/reference", "train_loss/ste"} <= charts
    assert not any(key.startswith(("reference/", "ste/", "naive/", "jitter/")) for key in charts)
    summary: dict = {}
    for record in logged:
        if record["type"] == "summary":
            summary |= record["summary"].get("update", {})
    assert summary["verdict"]["statement"] == results["verdict"]["statement"]
    assert summary["counterparts"]["ste"]["weight_alignment_error"] == pytest.approx(
        results["counterparts"]["ste"]["weight_alignment_error"])  # fmt: skip


def test_offline_run_holds_the_figures_and_the_page(finished_run):
    last = history_of(records(finished_run))[-1]
    expected = {f"figures/{path.stem}": path for path in (finished_run / "figures").glob("*.png")}
    assert len(expected) == 4
    expected["report"] = finished_run / "report.html"
    types = {key.removesuffix("._type"): value for key, value in last.items() if key.endswith("._type")}
    assert types == {key: "html-file" if key == "report" else "image-file" for key in expected}
    (files,) = finished_run.glob("wandb/offline-run-*/files")
    for key, path in expected.items():
        assert (files / last[f"{key}.path"]).read_bytes() == path.read_bytes(), key


@pytest.mark.slow
def test_the_environments_id_is_that_of_a_single_run_but_not_of_a_sweep(qat_run, monkeypatch):
    ids = []
    monkeypatch.setattr(WandbLogger, "_start", lambda self, mode, arguments: ids.append(arguments["id"]))
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    few = ("train.steps=2", "metrics.every=2", "train.steps_per_epoch=2")
    assert qat_run(*few).code == 0
    assert ids == ["abc123"]
    assert qat_run("-m", *few, "train.seed=1,2", "hydra.sweep.dir=sweep").code == 0
    assert len({*ids}) == 3 and len(ids) == 3


def test_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    (tmp_path / "wandb" / "offline-run-20260101_000000-old1").mkdir(parents=True)
    (tmp_path / "wandb" / "offline-run-20260101_000000-old1" / "run-old1.wandb").touch()
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert wandb_logger._run_id(tmp_path) == "old1"


@pytest.mark.parametrize("exit_code", [0, 143])
def test_media_are_logged_after_a_finished_run_only(tmp_path, exit_code):
    """The page of an unfinished run would be that of an earlier one."""
    logger = WandbLogger(tmp_path, "name", {}, mode="offline")
    (tmp_path / "report.html").write_text("<html></html>")
    logger.log_row({"step": 1})
    logger.close(exit_code)
    assert ["report.path" in row for row in history_of(records(tmp_path))] == (
        [False, True] if exit_code == 0 else [False]
    )


def test_a_figure_that_cannot_be_read_costs_a_warning(tmp_path, caplog):
    logger = WandbLogger(tmp_path, "name", {}, mode="offline")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curves.png").write_text("not an image")
    logger.close(0)
    (message,) = [message for message in caplog.messages if message.startswith("W&B")]
    assert message.startswith("W&B lacks the report: cannot identify image file")
    assert any(record["type"] == "exit" for record in records(tmp_path)), "the run is finished nevertheless"


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_without_key_or_network_finishes_and_warns_once(qat_run, monkeypatch, key):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid" if key else "http://127.0.0.1:9")
    (monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv("WANDB_API_KEY", raising=False))
    run = qat_run(*SHORT)
    assert run.code == 0, run.err
    assert run.err.count("W&B") == 1, run.err
    assert "logging offline, `wandb sync` uploads it later" in run.err
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
    assert message.startswith("W&B online is not available (No API key configured")


def test_disabled_writes_nothing(qat_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = qat_run(*SHORT)
    assert run.code == 0
    assert not list(run.folder.glob("wandb/*run-*"))


@pytest.mark.slow
def test_logger_none_writes_nothing(qat_run):
    assert not (qat_run(*SHORT, "logger=none").folder / "wandb").exists()


def test_an_error_while_logging_does_not_reach_the_run(tmp_path, caplog):
    logger = WandbLogger(tmp_path, "name", {}, mode="offline")
    logger._run.finish()
    logger._run.log = lambda row: (_ for _ in ()).throw(OSError("disk full"))
    for step in range(3):
        logger.log_row({"step": step})
    logger.log_results({"config": {}, "verdict": {}})
    logger.close(0)
    assert [message for message in caplog.messages if "W&B" in message] == ["W&B is left out from here on: disk full"]


def test_rows_of_segments_have_charts_of_their_own_and_none_of_the_length(segment_run, tmp_path):
    logger = WandbLogger(tmp_path, "name", {}, mode="disabled")
    logged = []
    logger._run.log = logged.append
    rows = [json.loads(line) for line in (segment_run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        logger.log_row(row)
    of_length = [len([row for row in logged if f"weight_alignment_error/ste@{length}" in row]) for length in (2, 6)]
    assert of_length == [12, 4]
    assert all("step" in row for row in logged)
    assert not any("segment" in row for row in logged)
    assert any("segment" in row for row in rows)
    logger.close(1)


def test_close_does_not_wait_forever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb_logger, "FINISH_SECONDS", 0.2)
    logger = WandbLogger(tmp_path, "name", {}, mode="disabled")
    never = threading.Event()
    logger._run.finish = lambda exit_code: never.wait()
    logger.close(0)
    never.set()
    assert caplog.messages[-1] == "W&B did not finish in 0 s: `wandb sync` uploads the rest later"


def test_the_agents_run_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    WandbLogger(tmp_path, "name", {}, mode="offline").close(0)
    assert [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")] == ["run-fromagent.wandb"]


def test_a_resumed_run_has_the_id_in_the_name_of_its_file(tmp_path):
    """The folder's name does not show the id if it has dashes, or if W&B was started twice within a second."""
    for name in ("offline-run-20261122_061916-my-run", "offline-run-20261122_061916-my-run-1"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-my-run.wandb").touch()
    (tmp_path / "wandb" / "latest-run").symlink_to(name)
    assert wandb_logger._run_id(tmp_path) == "my-run"


def test_every_run_of_the_agents_sweep_composes(finished_run):
    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    assert any(sweep["metric"]["name"] in row for row in history_of(records(finished_run)))
    assert sweep["command"][-2:] == ["qat-run", "${args_no_hyphens}"]
    for key, parameter in sweep["parameters"].items():
        for value in parameter["values"]:
            assert OmegaConf.select(composed(f"{key}={value}"), key) == value

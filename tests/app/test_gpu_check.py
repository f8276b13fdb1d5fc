"""The check for GPUs, on a CPU: its parts survive each other, and the page shows its record."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest

from scripts.gpu_check import PARTS
from scripts.gpu_checks.wheels import unpack
from scripts.gpu_docs import NOTHING, PURPOSES, RECORD, page
from scripts.performance_docs import DOCS
from tests.conftest import ROOT


def check(tmp_path, *arguments: str) -> tuple[int, str, dict]:
    file = tmp_path / "record.json"
    command = [sys.executable, ROOT / "scripts" / "gpu_check.py", "--device", "cpu", "--json", file, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout, json.loads(file.read_text())["parts"]


def test_the_page_is_what_the_record_gives():
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else None
    assert (DOCS / "gpu.md").read_text() == page(record)
    if record is None:
        assert "**No line of this project has run on a GPU.**" in page(record)


def test_a_rehearsal_on_a_cpu_is_no_record_of_a_gpu():
    machine = {"gpu": None, "packages": {}}
    figure = {"what": "a step", "value": 1.25, "low": 1.0, "high": 2.0, "unit": "×", "note": "within 2"}
    parts = {"modes": {"status": "done", "seconds": 1, "figures": [figure], "skipped": []}}
    assert NOTHING in page({"machine": machine, "parts": parts})
    machine = {"gpu": "NVIDIA H200", "driver": "1", "cuda": "13", "cores": 16, "python": "3.12", "commit": "c",
               "packages": {"torch": "2.11.0", "wandb": "not installed"}}  # fmt: skip
    parts["nccl"] = {
        "status": "stopped after 90 s", "seconds": 90, "figures": [], "error": "boom",
        "skipped": [{"what": "two ranks", "reason": "there is one GPU"}],
    }  # fmt: skip
    text = page({"machine": machine, "parts": parts})
    assert NOTHING not in text
    assert "On one NVIDIA H200" in text and "torch 2.11.0, at commit c" in text
    assert "| a step | 1.25 × (1 to 2) | within 2 |" in text
    assert "Status: stopped after 90 s: boom." in text and "- Skipped: two ranks (there is one GPU)." in text
    assert text.count("Not run.") == len(PARTS) - 2


def test_no_part_may_take_longer_than_eight_minutes():
    assert PURPOSES.keys() == PARTS.keys()
    assert max(seconds for *_, seconds in PARTS.values()) <= 480


def test_wheels_are_unpacked(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no wheels; collect them with --wheels"):
        unpack(tmp_path, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a.py", "b = 1")
    assert unpack(tmp_path, tmp_path / "site") == ["a-1-py3-none-any.whl"]
    assert (tmp_path / "site" / "a.py").read_text() == "b = 1"


@pytest.mark.slow
def test_parts_survive_each_other(tmp_path):
    """One is stopped, one fails, one skips what needs a GPU, and all are in one record."""
    code, out, parts = check(tmp_path, "--only", "modes", "--seconds", "1")
    assert (code, parts["modes"]["status"]) == (1, "stopped after 1 s")
    code, out, parts = check(tmp_path, "--only", "imagenet", "--only", "nccl", "--data", str(tmp_path))
    assert code == 0
    assert parts["modes"]["status"] == "stopped after 1 s", "it stays in the record"
    assert {part: parts[part]["status"] for part in ("imagenet", "nccl")} == {"imagenet": "done", "nccl": "done"}
    assert "skipped: NCCL, one rank, cuda and cuda:0 (NCCL needs a GPU; gloo is tried in its place)" in out
    assert "is no folder; set --data or QAT_STE_SHARED" in parts["imagenet"]["skipped"][0]["reason"]
    assert [figure["value"] for figure in parts["nccl"]["figures"]] == ["works", "works"]
    code, _, parts = check(tmp_path, "--only", "replica", "--device", "nowhere")
    assert (code, parts["replica"]["status"]) == (1, "failed")
    assert "nowhere" in parts["replica"]["error"]


@pytest.mark.slow
def test_figures_of_a_rehearsal(tmp_path):
    code, _, parts = check(tmp_path, "--only", "modes", "--only", "replica", "--only", "keras", "--only", "memory")
    assert code == 0
    errors = [figure for figure in parts["modes"]["figures"] if figure["what"].startswith("eager")]
    assert [figure["value"] for figure in errors] == [0, 0, 0, 0], "losses and weights in both precisions"
    replicas = [figure for figure in parts["replica"]["figures"] if "fp32" in figure["what"]]
    assert [f["value"] for f in replicas if "replica, weight" in f["what"]] == [0, 0], "with either kind of kernels"
    assert min(f["value"] for f in replicas if "jitter, weight" in f["what"]) > 0
    assert any("graph" in skipped["what"] for skipped in parts["keras"]["skipped"])

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from qat_ste.report.run.page import write_report
from qat_ste.report.tables import shown, table_rows


def test_page_is_built_from_the_files_without_torch(finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy, ignore=shutil.ignore_patterns("figures", "report.html", "wandb"))
    code = ("import sys; from pathlib import Path; from qat_ste.report.run.page import write_report; "
            "print(write_report(Path(sys.argv[1])), 'torch' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{}", "False"]
    assert (copy / "report.html").read_text() == (finished_run / "report.html").read_text()


def test_page_shows_verdict_table_figures_configuration_and_command(finished_run):
    page = (finished_run / "report.html").read_text()
    results = json.loads((finished_run / "results.json").read_text())
    assert results["verdict"]["statement"] in page
    assert all(title in page for title in table_rows(results["metrics"]).values())
    assert len(re.findall(r'<img alt="\w+" width="\d+" src="data:image/png;base64,', page)) == 4
    assert results["command"] in page
    assert "qat_ste.estimators.Tanh" in page
    assert len(page) < 3_000_000


def test_page_escapes_what_it_shows(finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    results = json.loads((copy / "results.json").read_text())
    results["verdict"]["statement"] = "<script>alert(1)</script>"
    (copy / "results.json").write_text(json.dumps(results))
    write_report(copy)
    assert "<script>" not in (copy / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["jitter only", "zero errors", "no validation"])
def test_figures_of_unusual_runs(finished_run, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    results = json.loads((copy / "results.json").read_text())
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    if change == "jitter only":
        results["counterparts"] = {"jitter_5": results["counterparts"]["jitter"]}
        text = json.dumps(rows).replace("jitter/", "jitter_5/")
        rows = json.loads(text)
        weights = dict(np.load(copy / "weights.npz"))
        np.savez(copy / "weights.npz", **{key.replace("jitter/", "jitter_5/"): value for key, value in weights.items()})
    elif change == "zero errors":
        rows = [{key: 0.0 if "alignment_error" in key else value for key, value in row.items()} for row in rows]
    else:
        rows = [row for row in rows if "reference/validation_loss" not in row]
    (copy / "results.json").write_text(json.dumps(results))
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert write_report(copy) == {}


def test_shown_numbers():
    assert [shown(value) for value in (None, 0, 0.0, 1.0, 0.99, 0.060952, 28.1927, 0.000012)] == [
        "–", "0", "0", "1.0000", "0.9900", "0.0610", "28.2", "1.20e-05"]  # fmt: skip

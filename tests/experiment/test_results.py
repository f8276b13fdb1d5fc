"""Results are typed, travel as ``results.json`` has them, and make the page that the command makes."""

from __future__ import annotations

import ast
import inspect
import json
import pickle

import pytest

import qat_ste
from qat_ste import ArgumentError, CounterpartResult
from qat_ste.divergence import metric_titles
from qat_ste.experiment import results
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.report.run import page
from tests.experiment.tiny import run


@pytest.fixture(scope="module")
def comparison():
    return run(steps=20, every=5, counterparts=["ste", "jitter", "replica"])


def test_every_metric_of_the_package_has_a_field_and_every_field_a_line(comparison):
    assert set(metric_titles()) <= set(vars(comparison.counterparts["ste"]))
    for node in ast.parse(inspect.getsource(results)).body:
        if isinstance(node, ast.ClassDef):
            statements = list(zip(node.body, node.body[1:]))
            for statement, following in statements:
                if isinstance(statement, ast.AnnAssign):
                    assert isinstance(following, ast.Expr) and len(ast.literal_eval(following.value)) > 10


def test_completion_offers_the_numbers_and_dir_the_public_names(comparison):
    assert {"weight_alignment_error", "test_accuracy", "layers"} <= set(dir(comparison.counterparts["ste"]))
    assert dir(qat_ste) == sorted(qat_ste.__all__)


def test_numbers_without_a_field_are_kept():
    result = CounterpartResult.of({"test_loss": 1.0, "mine": 2.0})
    assert result.more == {"mine": 2.0}
    assert result.as_dict()["mine"] == 2.0
    assert "more" not in result.as_dict()


def test_the_page_is_written_from_python(comparison, tmp_path):
    text = comparison.report(tmp_path / "run").read_text()
    assert comparison.verdict.statement in text
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["counterparts"]["ste"] == comparison.counterparts["ste"].as_dict()
    assert saved["config"]["train"]["steps"] == 20
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(comparison.rows)
    assert sorted(path.stem for path in (tmp_path / "run" / "figures").iterdir()) == [
        "alignment_error", "alignment_scatter", "curves", "movement_scatter"]  # fmt: skip


def test_a_page_that_cannot_be_written_raises_after_the_numbers_are_written(comparison, tmp_path, monkeypatch):
    def broken(folder):
        raise ImportError("no fonts")

    monkeypatch.setattr(page, "write_report", broken)
    with pytest.raises(RuntimeError, match="^the report could not be written: ImportError: no fonts$"):
        comparison.report(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "done"
    assert {"results.json", "metrics.jsonl", "weights.npz"} < {path.name for path in tmp_path.iterdir()}


def test_the_home_folder_is_expanded(comparison, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert comparison.report("~/run") == tmp_path / "run" / "report.html"
    assert Checkpoints("~/saved").paths[0] == tmp_path / "saved" / "checkpoint.pt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "saved"]


def test_progress_is_shown_on_request_alone(monkeypatch):
    shown = []
    monkeypatch.setattr(TerminalLogger, "log_row", lambda self, row: shown.append(row))
    run(steps=4, every=1, counterparts=["ste"])
    assert shown == []
    rows = []
    run(steps=4, every=1, counterparts=["ste"], progress=True, on_row=rows.append)
    assert shown == rows != []


def test_an_error_carries_name_value_and_rule():
    with pytest.raises(ArgumentError) as raised:
        run(lr=-1)
    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.name, error.value, error.allowed) == ("lr", -1, "a positive finite number")
    assert str(error) == "lr must be a positive finite number, got -1"

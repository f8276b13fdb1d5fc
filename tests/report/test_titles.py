"""Titles of metrics in ``results.json``: of earlier versions, and of files from any source."""

from __future__ import annotations

import json
import re

import pytest

from qat_ste.report.run.page import render
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.sweep.findings import NoRunsError, find
from qat_ste.report.sweep.folders import read_run
from qat_ste.report.sweep.page import render as render_sweep
from qat_ste.report.sweep.paper_table import paper_tables
from qat_ste.report.tables import AFTER_METRICS, BEFORE_METRICS, METRICS
from qat_ste.report.writers import to_csv, to_latex, to_markdown
from tests.report.matrix import ERRORS, copy_run


@pytest.fixture
def one(finished_run, tmp_path):
    return copy_run(finished_run, tmp_path / "one", 1, None, ERRORS, drawn=True)


def change(run, **values):
    results = json.loads((run / "results.json").read_text()) | values
    (run / "results.json").write_text(json.dumps(results))
    return results


@pytest.mark.parametrize("metrics", [{}, [], "x", 3, None])
def test_without_titles_those_of_the_first_version_are_used(one, metrics):
    before, page = read_run(one), render(RunFiles(one))
    change(one, metrics=metrics)
    assert read_run(one) == before
    assert before.rows == BEFORE_METRICS | METRICS | AFTER_METRICS
    assert render(RunFiles(one)) == page


def test_titles_and_names_of_metrics_are_escaped_and_bounded(one):
    title, name = "<script>alert(1)</script>\x1b[31m\n" + "x" * 300, "=HYPERLINK(<b>)"
    counterparts = change(one)["counterparts"]
    counterparts["ste"] |= {name: 0.25, "layers": {"w": {name: 0.125}}}
    titles = {name: title, "test_accuracy": "mine", "reference_test_accuracy": "mine"}
    change(one, counterparts=counterparts, metrics={key: {"title": value} for key, value in titles.items()})
    findings = find([one])
    tables = paper_tables(findings.measured, findings.added)
    of_run, of_sweep = render(RunFiles(one)), render_sweep(findings, tables, [], {}, one)
    for text in (of_run, of_sweep, to_markdown(tables), to_latex(tables)):
        assert "alert(1)" in text
        assert not re.search(r"<script>alert|\x1b|x{70}", text)
    assert re.search(r"<td data-title=\"&lt;script&gt;alert\(1\)[^\"<>]*\">0.1250</td>", of_run)
    assert "'=HYPERLINK(<b>),0.25,,1" in to_csv(tables)
    assert "<td>test accuracy, counterpart</td>" in of_sweep
    assert "<td>test accuracy, reference</td>" in of_sweep


def test_more_metrics_than_a_page_holds(finished_run, tmp_path):
    for number in range(2):
        run = copy_run(finished_run, tmp_path / f"{number}", number, None, ERRORS)
        change(run, metrics={f"{number}_{n}": {"title": "A"} for n in range(51)})
    with pytest.raises(NoRunsError, match="these runs have more than 100 metrics; report on fewer of them at a time"):
        find([tmp_path])

"""A new metric takes one class: tables, pages and docs show it without further changes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch

from qat_ste.app import report_cli
from qat_ste.divergence import Metric, metric_titles
from qat_ste.report import tables
from scripts.metric_docs import PAGE, page
from tests.conftest import SHORT

TITLE = "same [sign] & <more>"


@pytest.fixture
def same_sign():
    class SameSign(Metric):
        """Share of latent weights with the same sign (test)."""

        name = "same_sign"
        title = TITLE
        unit = "share | 0 to 1"
        over_time = True
        also_over_moved = True

        def terms(self, chunk_group):
            reference, counterpart = (
                member.weights[chunk_group.where] for member in (self.pair.reference, self.pair.counterpart)
            )
            same = reference.sign() == counterpart.sign()
            return same, torch.ones_like(same)

    yield SameSign
    Metric.registry.remove(SameSign)


def test_a_new_metric_class_is_shown_everywhere(same_sign, qat_run, check_run, monkeypatch, capsys, tmp_path):
    runs = [qat_run(*SHORT, "logger=none", f"train.seed={seed}", folder=f"runs/{seed}") for seed in (1, 2)]
    assert [run.code for run in runs] == [0, 0]
    checked = subprocess.run([sys.executable, check_run, runs[0].folder], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    results = runs[0].read("results.json")
    ste = results["counterparts"]["ste"]
    assert results["metrics"]["same_sign"] == {"title": TITLE}
    assert 0.5 < ste["same_sign"] < 1
    assert "same_sign" in ste["layers"]["conv1.weight"]
    assert '"ste/same_sign": ' in (runs[0].folder / "metrics.jsonl").read_text()

    on_terminal = next(line.split() for line in runs[0].out.splitlines() if line.startswith(TITLE))
    assert on_terminal[-3] == tables.shown(ste["same_sign"])
    places = [runs[0].out.index(word) for word in ("oscillation error", TITLE, "validation loss correlation")]
    assert places == sorted(places)
    assert runs[0].out.count("… of weights that moved") == 2
    assert page_of(runs[0].folder).count("<td>same [sign] &amp; &lt;more&gt;</td>") == 1
    assert page_of(runs[0].folder).count("<th>same [sign] &amp; &lt;more&gt;</th>") == 1, "by tensor"

    monkeypatch.setattr("qat_ste.report.sweep.gallery._planned", lambda groups: [])
    report(monkeypatch, "runs", "--summary", "summary.json")
    output = tmp_path / "runs"
    assert "<td>same [sign] &amp; &lt;more&gt;</td>" in page_of(output)
    assert "same \\[sign\\] &amp; &lt;more>" in (output / "tables.md").read_text()
    assert r"same [sign] \& \textless{}more\textgreater{} &" in (output / "tables.tex").read_text()
    cells = {
        (line["counterpart"], line["metric"]): line for line in csv.DictReader((output / "tables.csv").open(newline=""))
    }
    of_seeds = [run.read("results.json")["counterparts"]["ste"]["same_sign"] for run in runs]
    assert float(cells["ste", "same_sign"]["mean"]) == pytest.approx(sum(of_seeds) / 2)
    assert cells["jitter", "same_sign_moved"]["n"] == "2"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"] == {"same_sign": TITLE, "same_sign_moved": "… of weights that moved"}
    report(monkeypatch, "--diff", "runs/1", "runs/2")
    assert [*TITLE.split(), *map(tables.shown, of_seeds)] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]

    assert "| same \\[sign\\] &amp; &lt;more> | same_sign | share \\| 0 to 1 | Share of latent weights with" in page()


def report(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["qat-report", *arguments])
    report_cli.main()


def page_of(folder) -> str:
    return (folder / "report.html").read_text()


def test_the_default_title_is_the_name_with_spaces():
    class Unnamed(Metric):
        name = "number_of_signs"

    Metric.registry.remove(Unnamed)
    assert Unnamed.title == "number of signs"


def test_titles_equal_those_assumed_for_files_without_titles():
    rows = tables.table_rows(metric_titles())
    assert list(rows.items()) == list((tables.BEFORE_METRICS | tables.METRICS | tables.AFTER_METRICS).items())
    assert not tables.added(rows)


def test_docs_of_all_metrics_are_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()

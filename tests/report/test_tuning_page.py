"""Page, tables and figures of a tuning study: texts, escaping, and studies of every shape."""

from __future__ import annotations

import csv
import re
from io import StringIO

import pytest
from matplotlib.figure import Figure

from qat_ste.report.tune import page
from qat_ste.report.tune.comparison import Comparison
from qat_ste.report.tune.figures import curves, forest
from qat_ste.report.tune.page import records, render, to_markdown, write_study
from qat_ste.report.tune.study import Study
from qat_ste.report.tune.text import distance_of, findings, headline, p_of, rule, seeds_of, table, units, warnings
from tests.report.browser import CHROMIUM, run_in_page
from tests.report.tuning import cell, content, flat, invented, write

BAD = [None, 0.9, 0.9]
INSIDE = {0.01: [0.7, 0.71, 0.69], 0.03: [0.9, 0.91, 0.89], 0.09: [0.8, 0.81, 0.79]}
HOSTILE = "<script>alert(1)</script> $x_1$ & \\input{x} | `y` %"


def compared(values, factors=None, **other):
    return Comparison(Study(flat({"ste": INSIDE} | values, factors, **{"seeds": (1, 2, 3)} | other)))


def off_by(difference, noise=0.0005):
    """Curve that lies above the STE's by ``difference``, with a little noise."""
    return {
        rate: [value + difference + sign * noise for value, sign in zip(values, (-1, 0, 1), strict=True)]
        for rate, values in INSIDE.items()
    }


SHAPES = {
    "one estimator": lambda: invented(("tanh",)),
    "faults": lambda: invented(("tanh", "sine", "arctan")),
    "loss": lambda: invented(("tanh", "sine"), metric="loss"),
    "a loss without a unit, one seed": lambda: invented(("tanh",), seeds=(1,), metric="loss") | {"unit": ""},
    "two rates": lambda: flat({"ste": {0.01: [0.8] * 3, 0.02: [0.9] * 3}, "tanh": {0.01: [0.8] * 3, 0.02: BAD}}),
    "an estimator without an eligible rate": lambda: flat({"ste": INSIDE, "tanh": dict.fromkeys(INSIDE, BAD)}),
    "an STE without an eligible rate": lambda: flat({"ste": dict.fromkeys(INSIDE, BAD), "tanh": INSIDE}, metric="loss"),
    "nothing but faults": lambda: flat({name: dict.fromkeys(INSIDE, BAD) for name in ("ste", "tanh")}),
    "no cells": lambda: content([], {"tanh": 0.5, "sine": None}),
    "half of the cells": lambda: (lambda whole: whole | {"cells": whole["cells"][::2]})(invented(("tanh", "sine"))),
    "α of 0": lambda: flat({"ste": INSIDE, "tanh": INSIDE}, {"tanh": 0.0}),
    "α of 1e-14": lambda: flat({"ste": INSIDE, "tanh": INSIDE}, {"tanh": 1e-14}),
    "equal values": lambda: flat({name: {0.01: [0.5] * 3, 0.03: [0.5] * 3} for name in ("ste", "tanh")}),
    "huge losses": lambda: flat({"ste": INSIDE, "tanh": {0.03: [1e30] * 3}}, metric="loss"),
    "hostile names": lambda: flat({"ste": INSIDE, HOSTILE: INSIDE, "_": INSIDE, "=1+1": INSIDE, "x" * 300: INSIDE}),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of a study of 17 estimators with its page."""
    folder = write(tmp_path_factory.mktemp("study"), invented())
    assert write_study(folder) == {}
    return folder


def test_the_files_of_a_study(written):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    figures = {f"figures/tune_{name}.{kind}" for name in ("differences", "curves") for kind in ("png", "pdf")}
    assert names == figures | {f"tune.{kind}" for kind in ("json", "html", "md", "tex", "csv")} | {"tune_cells.csv"}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_study_has_its_page_and_figures(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "with_pdf", lambda draw, path: draw())  # a PDF takes most of the time
    study = SHAPES[shape]()
    assert write_study(write(tmp_path, study)) == {}
    html = (tmp_path / "tune.html").read_text()
    assert html.count("data:image/png;base64,") == 2
    assert "nan" not in re.sub(r"base64,[^\"]*|the loss is nan", "", html)
    assert "None" not in html
    lines = list(csv.DictReader(StringIO((tmp_path / "tune.csv").read_text())))
    assert len(lines) == len(study["estimators"])
    assert "nan" not in (tmp_path / "tune.csv").read_text()
    assert len((tmp_path / "tune_cells.csv").read_text().splitlines()) >= len(study["cells"])


def test_a_figure_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(page.FIGURES, "tune_differences", (lambda _: Figure(), ""))

    def fail(_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(page.FIGURES, "tune_curves", (fail, ""))
    assert write_study(write(tmp_path, invented(("tanh",)))) == {"tune_curves": "ZeroDivisionError: division by zero"}
    assert (tmp_path / "tune.html").read_text().count("data:image/png") == 1


@pytest.mark.usefixtures("no_drawing")
def test_names_are_escaped_in_every_file(tmp_path):
    study = flat({"ste": INSIDE, HOSTILE: INSIDE | {0.09: BAD}, "=1+1": INSIDE})
    study["estimators"][HOSTILE]["refused"] = "<b>not</b> odd"
    study["command"] = "qat-tune '<i>'"
    study["settings"] = {"a": "</pre><script>"}
    write_study(write(tmp_path, study))
    html = (tmp_path / "tune.html").read_text()
    assert "<script" not in html
    assert "<b>not</b>" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x_1$ &amp; \\input{x}" in html
    markdown = (tmp_path / "tune.md").read_text()
    assert "<script" not in markdown
    assert r"&lt;script>alert(1)&lt;/script> \$x_1\$ &amp; \\input{x} \| \`y\`" in markdown
    tex = (tmp_path / "tune.tex").read_text()
    assert r"\textless{}script\textgreater{}alert(1)" in tex
    assert r"\$x\_1\$ \& \textbackslash{}input\{x\}" in tex
    assert r"\input" not in tex
    assert list(csv.DictReader(StringIO((tmp_path / "tune.csv").read_text())))[1]["estimator"] == "'=1+1"


def test_headline_counts_the_answers():
    values = {"a": INSIDE, "b": off_by(0.05), "c": off_by(-0.05), "d": off_by(0.001), "e": dict.fromkeys(INSIDE, BAD)}
    assert headline(compared(values)) == (
        "Compared with the STE, each at its best learning rate, 2 of 5 estimators are equivalent, 1 is better, "
        "1 is worse and 1 has no numbers (3 seeds, margin: 1 point of test accuracy)"
    )
    start = "Compared with the STE, each at its best learning rate, "
    basis = "(3 seeds, margin: 1 point of test accuracy)"
    assert headline(compared({"tanh": off_by(0.05)})) == f"{start}tanh is better {basis}"
    assert headline(compared({"a": INSIDE, "b": INSIDE})) == f"{start}all 2 estimators are equivalent {basis}"
    assert headline(compared({"a": off_by(0.02), "b": INSIDE}, margin=0.005)) == (
        f"{start}1 of 2 estimators is equivalent and 1 is better (3 seeds, margin: 0.5 points of test accuracy)"
    )
    two = Comparison(Study(invented(("tanh",), seeds=(1, 2))))
    assert headline(two) == f"{start}tanh is undecided (no interval: 2 seeds, margin: 1 point of test accuracy)"
    loss = compared({"tanh": INSIDE}, metric="loss", margin=0.02)
    assert headline(loss).endswith("margin: 2 % of the STE's test loss, 0.014 bits per byte)")


def test_findings():
    beyond = INSIDE | {0.09: [0.95] * 3, 0.27: [0.8] * 3}
    study = flat({"ste": INSIDE, "tanh": INSIDE, "dsq": beyond}, {"tanh": 1 / 3, "dsq": 1.0})
    study["cells"] += [cell("ste", 0.03, seed, 0.9, role="adjusted", of="tanh") for seed in (1, 2, 3)]
    assert findings(Comparison(Study(study))) == [
        "Best rates times α: 1.0 steps of the grid from the STE's best rate in the median, at most 1.0 (tanh)",
        "The STE at an estimator's best rate loses at most 10.00 points (dsq)",
        "Adjusted STE: equivalent to its estimator for 0 of 1",
    ]
    for each in study["cells"]:
        if (each["estimator"], each["lr"]) == ("ste", 0.09):
            each |= {"test_accuracy": None, "validation_accuracy": None, "fault": "the loss is nan at step 3"}
    assert findings(Comparison(Study(study)))[1] == (
        "The STE at an estimator's best rate loses nothing and diverges at that of dsq"
    )
    assert findings(compared({"tanh": INSIDE}, {"tanh": None})) == [
        "Best learning rates: 0.0 steps of the grid from the STE's best rate",
        "The STE at an estimator's best rate loses nothing",
    ]


def test_a_difference_that_the_grid_makes_is_named():
    study = flat({"ste": INSIDE, "tanh": off_by(0.05)}, {"tanh": 0.5})
    tests = [each["test_accuracy"] for each in study["cells"] if each["estimator"] == "tanh" and each["lr"] == 0.03]
    study["cells"] += [cell("ste", 0.03, seed, tests[seed - 1], role="adjusted", of="tanh") for seed in (1, 2, 3)]
    assert findings(Comparison(Study(study)))[-1].startswith(
        "Better or worse, but equivalent to the adjusted STE: tanh;"
    )


def test_a_vanishing_factor_has_no_distance():
    comparison = compared({"tanh": INSIDE, "dsq": INSIDE}, {"tanh": 4e-14, "dsq": 0.5})
    assert [row.distance is None for row in comparison.rows] == [True, False]
    assert table(comparison)[2][3] == "1.2e-15"
    assert findings(comparison)[0].endswith("; without tanh, whose α is below single precision")


def test_warnings():
    rising = {0.01: [0.1] * 3, 0.03: [0.2] * 3, 0.09: [0.3] * 3}
    study = flat({"ste": rising, "tanh": rising | {0.27: BAD}, "dsq": rising | {0.27: [0.4] * 3}}, extensions=1)
    study["grid"] = [0.01, 0.03, 0.09]
    assert warnings(Comparison(Study(study))) == [
        "The study is unfinished, its answers may change; training is missing for ste",
        "The grid was extended for tanh by 1 rate, dsq by 1 rate",
        "The best rate is still the smallest or largest one tried for dsq (0.27)",
        "Training failed at rates that can therefore not be chosen: tanh at 0.27 (1 of 3 seeds)",
        "The network learned little: the best test accuracy is 40.0 %. Answers about networks that learned little say "
        "little",
    ]
    assert warnings(compared({"tanh": INSIDE})) == []
    assert warnings(Comparison(Study(invented(("tanh",), seeds=(1, 2)))))[0] == (
        "No answer can be given with fewer than 3 seeds"
    )


def test_the_rule_is_on_the_page_and_in_markdown():
    comparison = Comparison(Study(invented()))
    html, markdown = render(comparison), to_markdown(comparison)
    terms = dict(rule(comparison))
    assert list(terms) == [
        "Choice", "Difference", "Equivalent", "Better, worse", "Undecided", "Seeds to decide", "Limits"
    ]  # fmt: skip
    for term, explanation in terms.items():
        assert f"<b>{term}.</b> " in html
        assert f"- **{term}.** {explanation}\n" in markdown
    assert "Holm's correction over the 17 estimators (familywise 5 %)" in terms["Better, worse"]
    assert "±1 point of test accuracy" in terms["Equivalent"]
    assert "at most 3 for each" in terms["Choice"]
    assert "Holm" not in str(rule(Comparison(Study(invented(("tanh",))))))


def test_the_page_has_every_estimator_refusal_and_failure():
    comparison = Comparison(Study(invented()))
    html = render(comparison)
    for row in comparison.rows:
        assert f"<td>{row.label}</td>" in html
    assert "The theorem does not cover <b>exp</b>: its gradient &lt;is&gt; not positive." in html
    failed = sum(each["fault"] is not None for each in comparison.study.content["cells"])
    assert f"Runs that failed ({failed})" in html
    assert html.count(": the loss is nan at step 12</li>") == failed
    assert "<li>arctan at 0.1, seed 1: the loss is nan at step 12</li>" in html


def test_numbers_in_tables():
    values = {"tanh": INSIDE, "dsq": off_by(-0.05), "sine": dict.fromkeys(INSIDE, BAD)}
    lines = table(compared(values))
    assert lines[1] == ["ste", "–", "0.03", "–", "90.00 (87.52 to 92.48)", *["–"] * 6]
    assert lines[2][:9] == [
        "tanh", "equivalent", "0.03", "0.015", "90.00 (87.52 to 92.48)", "0", "1.000", "–", "0"
    ]  # fmt: skip
    row = "dsq worse 0.03 0.015 85.00 (82.58 to 87.42) −5.00 (−5.12 to −4.88) <0.001 –"
    assert " ".join(lines[3][:8]) == row
    assert lines[4] == ["sine", "no numbers", *["–"] * 9]
    assert (p_of(0.0004), p_of(0.0312), p_of(None)) == ("<0.001", "0.031", "–")
    assert (seeds_of(1200), seeds_of(10_001), seeds_of(None)) == ("1,200", "more than 10,000", "–")
    assert (distance_of(-0.04), distance_of(-1.26), distance_of(2.0)) == ("0", "−1.3", "+2.0")
    written = units(compared(values, margin=0.0005))
    assert written.signed(0.00012345) == "+0.0123", "two digits more than the first of the margin"


def test_records_have_all_digits():
    comparison = compared({"tanh": off_by(-0.05)})
    (record,) = records(comparison)
    row = comparison.rows[0]
    assert record["difference"] == row.difference.mean.mean == pytest.approx(-0.05)
    assert (record["best_rate"], record["best_rate_ste"], record["alpha_times_best_rate"]) == (0.03, 0.03, 0.015)
    assert (record["margin"], record["holm_p"], record["answer"]) == (0.01, row.p, "worse")
    assert (record["swap_loss"], record["swap_diverged"], record["adjusted_gain"]) == (0, 0, None)


def test_the_latex_table_fits_a_page(written):
    tex = (written / "tune.tex").read_text()
    rows = [line for line in tex.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 19
    assert all(row.count(" & ") == 5 for row in rows)


def test_figures_show_answers_and_the_best_rates():
    terrible = {rate: [0.1] * 3 for rate in INSIDE}
    values = {"tanh": INSIDE, "dsq": off_by(0.004), "bad": terrible, "sine": dict.fromkeys(INSIDE, BAD)}
    comparison = compared(values)
    (axis,) = forest(comparison).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["tanh", "dsq", "bad", "sine"]
    assert [text.get_text() for text in axis.texts] == ["−80.00", "no numbers"]
    low, high = axis.get_xlim()
    assert -4 < low < -1.2 < 1.2 < high < 4, "the estimator that is 80 points worse does not squeeze the others"
    panels = curves(comparison).axes
    assert [panel.get_title() for panel in panels] == ["tanh", "dsq", "bad", "sine"]
    texts = [[text.get_text() for text in panel.texts] for panel in panels]
    assert texts == [[], [], ["best: 10.00 ↓"], ["no rate with all seeds"]]
    low, high = panels[0].get_ylim()
    assert 50 < low < 88 < 91 < high < 100
    assert panels[0].get_xlim()[1] < 1


@pytest.mark.parametrize("factor", [1e-14, 0.5, 3.0])
def test_the_axis_of_rates_holds_the_tried_ones(factor):
    low, high = curves(compared({"tanh": INSIDE}, {"tanh": factor})).axes[0].get_xlim()
    assert 0.005 < low < 0.01
    assert 0.09 < high < 0.2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_on_a_phone_tables_and_figures_scroll_within_their_boxes(written, tmp_path):
    script = """
        const boxes = [document.documentElement, ...document.querySelectorAll(".scroll")];
        return boxes.map(box => [box.scrollWidth, box.clientWidth]);
    """
    result = run_in_page(written / "tune.html", script, tmp_path, 390)
    (page_needs, page_has), *boxes = result.outcome
    assert page_needs <= page_has <= 390
    assert len(boxes) == 3
    assert all(needs > has for needs, has in boxes)
    assert (result.faults, result.asked) == ([], [])

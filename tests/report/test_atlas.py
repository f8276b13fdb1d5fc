"""The page of an atlas: its labels follow from the cells by the stated rule, and its numbers are those of the cells."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from qat_ste.report.atlas.cells import (
    DISGUISE,
    NEAR_ONLY,
    NEARER_ONLY,
    NO_NUMBERS,
    NOT,
    SAME,
    UNDECIDED,
    geometric_mean,
    read_atlas,
)
from qat_ste.report.atlas.figures import errors_at_both_rates
from qat_ste.report.atlas.page import finding, headline, write_atlas
from tests.conftest import ROOT
from tests.report.browser import CHROMIUM, run_in_page

SEEDS, LRS, SMALLER = (1, 2, 3), (0.05, 0.01), 5
T_TWO = 4.302653  # 97.5 % quantile of Student's t with two degrees of freedom
# The adjustment of each optimizer; each combination's distance at the smaller rate, order of its error, and label.
KINDS = {"sgd": "remap", "adam": "keep", "signsgd": "exact", "muon": "none"}
COURSES = {
    ("tanh", "sgd"): (1.0, 0.9, DISGUISE), ("sine", "sgd"): (40.0, 0.0, NOT),
    ("tanh", "adam"): (2.0, 0.1, NEAR_ONLY), ("sine", "adam"): (9.0, 0.4, NEARER_ONLY),
    ("tanh", "signsgd"): (0.0, None, SAME), ("sine", "signsgd"): (0.01, 0.3, DISGUISE),
    ("tanh", "muon"): (5.2, 0.24, NOT), ("sine", "muon"): (4.8, 0.26, DISGUISE),
}  # fmt: skip


def write(
    folder: Path,
    names: dict[str, str] | None = None,
    seeds: Sequence[int] = SEEDS,
    spread: float = 0.01,
    order_spread: float = 0.0,
) -> Path:
    """Writes ``atlas.json`` with the errors of ``COURSES``.

    Args:
        names: other names for estimators and optimizers.
        spread: difference of the distances' logarithms between neighbouring seeds.
        order_spread: difference of the orders between neighbouring seeds.
    """
    called = {name: name for key in COURSES for name in key} | (names or {})
    cells = []
    for (estimator, optimizer), (distance, order, _) in COURSES.items():
        for lr in LRS:
            for seed in seeds:
                jitter = 0.01 * (1 if lr == LRS[1] else 2)
                falls = 1 if lr == LRS[1] else SMALLER ** ((order or 0) + order_spread * (seed - 2))
                ste = 0.01 * distance * math.exp(spread * (seed - 2)) * falls
                cells.append({
                    "estimator": called[estimator], "optimizer": called[optimizer], "seed": seed, "lr": lr, "steps": 9,
                    "ste": ste, "naive": 0.3, "jitter": jitter, "equivalent_lr_jitter": ste / jitter,
                    "equivalence": KINDS[optimizer], "equivalence_reason": "because", "lr_factor": 0.5,
                    "refused": "sine <is> not positive" if estimator == "sine" else None, "g_ratio": 10.0,
                    "jumps": False, "test_accuracy": 0.9, "moved_fraction": 0.1, "saturated_fraction": 0.0,
                    "fault": None,
                })  # fmt: skip
    content = {
        "schema": 1, "command": "qat-atlas", "versions": {"torch": "2"}, "settings": {}, "seeds": seeds, "smaller": SMALLER,
        "estimators": [called["tanh"], called["sine"]], "optimizers": {called[name]: LRS for name in KINDS}, "cells": cells,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "atlas.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "atlas")


def test_labels_follow_from_distance_and_order(folder):
    atlas = read_atlas(folder / "atlas.json")
    for key, (distance, order, label) in COURSES.items():
        combination = atlas.combinations[key]
        measured = combination.distance
        assert measured.mean == pytest.approx(distance)
        if distance:
            reach = T_TWO * 0.01 / math.sqrt(3)
            assert math.log(measured.high / distance) == pytest.approx(reach)
            assert math.log(measured.low / distance) == pytest.approx(-reach)
        assert (combination.order.mean if combination.order else None) == (
            None if order is None else pytest.approx(order, abs=1e-12)
        )
        assert combination.label == label, key
        assert combination.doubt == ""
    assert [list(group) for _, group in atlas.groups()] == [["sgd"], ["adam"], ["signsgd"], ["muon"]]
    assert headline(atlas) == "The one estimator that the theorem covers (3 seeds, 95 % intervals)"
    assert [finding(atlas, name) for name in atlas.optimizers] == [
        "sgd: 1 in disguise; farthest is tanh at 1.0 (0.98 to 1.0) %",
        "adam: 1 near only; farthest is tanh at 2.0 (2.0 to 2.1) %",
        "signsgd: 1 the same run",
        "muon: 1 not; farthest is tanh at 5.2 (5.1 to 5.3) %",
    ]


@pytest.mark.usefixtures("no_drawing")
def test_an_interval_that_contains_its_bound_leaves_the_label_undecided(tmp_path):
    """The orders 0.24 and 0.26 have opposite labels only if their intervals exclude 0.25."""
    folder = write(tmp_path / "atlas", spread=0.05, order_spread=0.05)
    atlas = read_atlas(folder / "atlas.json")
    both = "the interval of the distance contains 5 % and the interval of the order contains 0.25"
    for estimator, order in (("tanh", 0.24), ("sine", 0.26)):
        combination = atlas.combinations[estimator, "muon"]
        reach = T_TWO * 0.05 / math.sqrt(3)
        assert (combination.order.low, combination.order.high) == pytest.approx((order - reach, order + reach))
        assert (combination.label, combination.doubt) == (UNDECIDED, both)
    assert atlas.combinations["sine", "adam"].label == NEARER_ONLY
    adam = atlas.combinations["tanh", "adam"]
    assert (adam.near, adam.falling, adam.label) == (True, False, NEAR_ONLY)
    assert write_atlas(folder) == {}
    assert both in (folder / "atlas.html").read_text()


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_with_fewer_than_three_seeds_nothing_is_decided(tmp_path, seeds):
    folder = write(tmp_path / "atlas", seeds=seeds)
    assert write_atlas(folder) == {}
    atlas = read_atlas(folder / "atlas.json")
    reason = "no interval: 1 seed" if len(seeds) == 1 else "no interval: 2 seeds"
    for (estimator, optimizer), (*_, label) in COURSES.items():
        combination = atlas.combinations[estimator, optimizer]
        expected = (SAME, "") if label == SAME else (UNDECIDED, reason)
        assert (combination.label, combination.doubt) == expected
    assert headline(atlas) == f"The one estimator that the theorem covers ({reason})"
    assert finding(atlas, "sgd").startswith("sgd: 1 undecided; farthest is tanh at ")
    for text in ((folder / "atlas.html").read_text(), (folder / "atlas.md").read_text()):
        assert reason in text and "all " not in text.partition("An estimator counts")[0]


def test_a_geometric_mean_with_some_zeros_has_no_interval():
    assert geometric_mean([0.0, 1.0, 2.0]).low is None
    assert geometric_mean([0.0, 0.0, 0.0]).high == 0
    assert geometric_mean([1.0, 2.0, 4.0, None]).mean == pytest.approx(2)
    assert geometric_mean([None]) is None


def set_accuracy(folder: Path, **accuracies: float) -> None:
    content = json.loads((folder / "atlas.json").read_text())
    for cell in content["cells"]:
        cell["test_accuracy"] = accuracies.get(cell["optimizer"], cell["test_accuracy"])
    (folder / "atlas.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("no_drawing")
def test_a_network_that_learned_little_is_marked(folder):
    assert read_atlas(folder / "atlas.json").learned_little() == {}
    set_accuracy(folder, adam=0.44, muon=0.46)
    assert write_atlas(folder) == {}
    warning = "adam learned little: 44.0 % of test images are right, 90.0 % under sgd"
    for text in ((folder / "atlas.html").read_text(), (folder / "atlas.md").read_text()):
        assert warning in text
        assert text.count("learned little: ") == 1
        assert "90.0" in text and "46.0" in text
    set_accuracy(folder, sgd=0.2, adam=0.2, signsgd=0.2, muon=0.2)
    assert list(read_atlas(folder / "atlas.json").learned_little()) == ["sgd", "adam", "signsgd", "muon"]


@pytest.mark.usefixtures("no_drawing")
def test_the_page_of_an_older_version_is_made(tmp_path):
    shutil.copytree(ROOT / "tests" / "kept" / "atlas", tmp_path / "atlas")
    assert write_atlas(tmp_path / "atlas") == {}
    page = (tmp_path / "atlas" / "atlas.html").read_text()
    assert "The one estimator that the theorem covers (no interval: 2 seeds)" in page
    assert "sgd: 1 undecided; farthest is tanh at 3.1 %" in page


def test_each_figure_is_also_a_pdf_file_that_the_page_links(folder):
    assert write_atlas(folder) == {}
    page = (folder / "atlas.html").read_text()
    for name in ("atlas", "atlas_errors"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        pdf = (folder / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/Subtype /Image" not in pdf, "vectors, not pixels"
        assert f'href="figures/{name}.pdf"' in page


def test_each_estimator_has_its_row_in_the_figure_of_errors(folder):
    axes = errors_at_both_rates(read_atlas(folder / "atlas.json")).axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["tanh", "sine"]
    (panel,) = [axis for axis in axes if axis.get_title().startswith("sgd")]
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in panel.lines if line.get_marker() == "o"}
    rows = {round(y): {round(x, 9) for x, at in points if round(at) == round(y)} for _, y in points}
    assert {0.01, 0.3} < rows[0] and {0.4, 0.3} < rows[1]


def test_page_and_tables_have_the_numbers_of_the_cells(folder):
    assert write_atlas(folder) == {}
    page = (folder / "atlas.html").read_text()
    cells = json.loads((folder / "atlas.json").read_text())["cells"]
    read = list(csv.DictReader((folder / "atlas.csv").open()))
    assert [float(row["ste"]) for row in read] == [cell["ste"] for cell in cells]
    assert [row["estimator"] for row in read] == [cell["estimator"] for cell in cells]
    for text in (page, (folder / "atlas.md").read_text()):
        assert "0.90" in text
        assert "39 to 41" in text
    assert 'src="data:image/png;base64,' in page
    assert "http://" not in page and "https://" not in page
    assert "sine &lt;is&gt; not positive" in page


@pytest.mark.usefixtures("no_drawing")
def test_a_fault_is_shown_and_leaves_other_numbers(folder):
    content = json.loads((folder / "atlas.json").read_text())
    broken = next(cell for cell in content["cells"] if (cell["estimator"], cell["optimizer"]) == ("tanh", "sgd"))
    broken |= {"fault": "the loss is nan", "ste": None, "naive": None, "jitter": None, "equivalent_lr_jitter": None}
    (folder / "atlas.json").write_text(json.dumps(content))
    assert write_atlas(folder) == {}
    atlas = read_atlas(folder / "atlas.json")
    assert atlas.combinations["tanh", "sgd"].label == NO_NUMBERS
    assert atlas.combinations["sine", "sgd"].label == NOT
    assert "tanh under sgd, seed 1, lr 0.05: the loss is nan" in (folder / "atlas.html").read_text()


@pytest.mark.usefixtures("no_drawing")
def test_strange_names_are_escaped(tmp_path):
    strange = {"tanh": "<img src=x onerror=alert(1)>", "sgd": "=1+1|`$x$`", "muon": "a" * 300}
    folder = write(tmp_path / "strange", strange)
    assert write_atlas(folder) == {}
    page = (folder / "atlas.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "\n'=1+1" not in (folder / "atlas.csv").read_text()
    assert ",'=1+1|" in (folder / "atlas.csv").read_text()
    assert "\\|" in (folder / "atlas.md").read_text()
    if CHROMIUM:
        found = run_in_page(folder / "atlas.html", "return document.querySelectorAll('tbody tr').length;", tmp_path)
        assert (found.faults, found.asked, found.outcome) == ([], [], 4 + 4 * 2)


def test_another_schema_is_refused(folder):
    (folder / "atlas.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(ValueError, match="schema 2 is not supported, only 1 is"):
        write_atlas(folder)


def test_the_base_of_the_order_is_the_ratio_of_the_rates(folder):
    atlas = read_atlas(folder / "atlas.json")
    combination = atlas.combinations["tanh", "sgd"]
    (large, *_), (small, *_) = ([cell["ste"] for cell in cells] for cells in combination.cells)
    assert math.log(large / small, SMALLER) == pytest.approx(combination.order.mean)


def segmented(folder: Path, outcomes: Sequence[str]) -> Path:
    """Adds segments of 5 steps to the cells, with these outcomes by seed."""
    content = json.loads((folder / "atlas.json").read_text())
    content["settings"] = {"atlas": {"segment": 5}}
    by_seed = dict(zip(content["seeds"], outcomes, strict=True))
    for cell in content["cells"]:
        cell |= {"segment_outcome": by_seed[cell["seed"]], "segment_ste_over_jitter": 0.5 * 1.1 ** cell["seed"],
                 "segment_ste_over_jitter_low": 0.4, "segment_ste_over_jitter_high": 0.8}  # fmt: skip
    (folder / "atlas.json").write_text(json.dumps(content))
    return folder


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("seeds", "outcomes", "expected", "interval"),
    [
        ([1], ["did not matter"], "did not matter", (0.4, 0.8)),
        (SEEDS, ["mattered"] * 3, "mattered", None),
        (SEEDS, ["mattered", "mattered", "did not matter"], "undecided", None),
    ],
)
def test_segments_are_a_second_measure(tmp_path, seeds, outcomes, expected, interval):
    folder = segmented(write(tmp_path / "atlas", seeds=seeds), outcomes)
    outcome, ratio = read_atlas(folder / "atlas.json").combinations["tanh", "sgd"].segments()
    assert outcome == expected
    assert ratio.mean == pytest.approx(0.5 * 1.1 ** (sum(seeds) / len(seeds)))
    if interval:
        assert (ratio.low, ratio.high) == interval, "of one seed: that over its segments"
    else:
        assert ratio.low < ratio.mean < ratio.high
    write_atlas(folder)
    page, table = (folder / "atlas.html").read_text(), (folder / "atlas.md").read_text()
    for text in (page, table):
        assert "in segments of 5 steps" in text
        assert expected in text


@pytest.mark.usefixtures("no_drawing")
def test_without_segments_the_page_has_none(folder):
    write_atlas(folder)
    assert "segment" not in (folder / "atlas.html").read_text() + (folder / "atlas.md").read_text()

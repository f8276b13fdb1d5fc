"""The page of an atlas: what it says follows from the cells by the stated rule, and its numbers are theirs."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path

import pytest

from qat_ste.report.atlas.cells import DISGUISE, NOT, OPEN, SAME, UNKNOWN, read_atlas
from qat_ste.report.atlas.page import headline, write_atlas
from tests.report.browser import CHROMIUM, run_in_page

SEEDS, LRS, SMALLER = (1, 2, 3), (0.05, 0.01), 5
# By optimizer: adjustment, and what each estimator's distance is at the smaller rate and how its error falls.
KINDS = {"sgd": "remap", "adam": "keep", "signsgd": "exact", "muon": "none"}
COURSES = {
    ("tanh", "sgd"): (1.0, 0.9, DISGUISE), ("sine", "sgd"): (40.0, 0.0, NOT),
    ("tanh", "adam"): (2.0, 0.1, OPEN), ("sine", "adam"): (9.0, 0.4, OPEN),
    ("tanh", "signsgd"): (0.0, None, SAME), ("sine", "signsgd"): (0.01, 0.3, DISGUISE),
    ("tanh", "muon"): (5.1, 0.24, NOT), ("sine", "muon"): (4.9, 0.26, DISGUISE),
}  # fmt: skip


def write(folder: Path, names: dict[str, str] | None = None) -> Path:
    """``atlas.json`` with errors of our making; ``names``: other names for estimators and optimizers."""
    called = {name: name for key in COURSES for name in key} | (names or {})
    cells = []
    for (estimator, optimizer), (distance, order, _) in COURSES.items():
        for lr in LRS:
            for seed in SEEDS:
                own = 1 + 0.01 * (seed - 2)
                jitter = 0.01 * (1 if lr == LRS[1] else 2)
                ste = 0.01 * distance * own * (1 if lr == LRS[1] else SMALLER ** (order or 0))
                cells.append({
                    "estimator": called[estimator], "optimizer": called[optimizer], "seed": seed, "lr": lr, "steps": 9,
                    "ste": ste, "naive": 0.3, "jitter": jitter, "equivalent_lr_jitter": ste / jitter,
                    "equivalence": KINDS[optimizer], "equivalence_reason": "because", "lr_factor": 0.5,
                    "refused": "sine <is> not positive" if estimator == "sine" else None, "g_ratio": 10.0,
                    "jumps": False, "test_accuracy": 0.9, "moved_fraction": 0.1, "saturated_fraction": 0.0,
                    "fault": None,
                })  # fmt: skip
    content = {
        "schema": 1, "command": "qat-atlas", "versions": {"torch": "2"}, "settings": {}, "seeds": SEEDS, "smaller": SMALLER,
        "estimators": [called["tanh"], called["sine"]], "optimizers": {called[name]: LRS for name in KINDS}, "cells": cells,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "atlas.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "atlas")


def test_words_follow_from_distance_and_order(folder):
    atlas = read_atlas(folder / "atlas.json")
    for key, (distance, order, word) in COURSES.items():
        pair = atlas.pairs[key]
        near = pair.over_seeds("equivalent_lr_jitter")
        assert near.mean == pytest.approx(distance)
        assert near.sd == pytest.approx(statistics.stdev([0.99 * distance, distance, 1.01 * distance]), abs=1e-12)
        assert (pair.order.mean if pair.order else None) == (None if order is None else pytest.approx(order, abs=1e-12))
        assert pair.word == word, key
    assert [list(group) for _, group in atlas.groups()] == [["sgd"], ["adam"], ["signsgd"], ["muon"]]
    assert headline(atlas) == (
        "The STE in disguise, of the 1 that the theorem covers: all under sgd · signsgd; none under adam · muon."
    )


def test_page_and_tables_have_the_numbers_of_the_cells(folder):
    assert write_atlas(folder) == {}
    page = (folder / "atlas.html").read_text()
    cells = json.loads((folder / "atlas.json").read_text())["cells"]
    read = list(csv.DictReader((folder / "atlas.csv").open()))
    assert [float(row["ste"]) for row in read] == [cell["ste"] for cell in cells]
    assert [row["estimator"] for row in read] == [cell["estimator"] for cell in cells]
    for text in (page, (folder / "atlas.md").read_text()):
        assert "0.90 ± " in text or "order 0.90" in text
        assert "40 ± 0.40" in text
    assert 'src="data:image/png;base64,' in page
    assert "http://" not in page and "https://" not in page
    assert "sine &lt;is&gt; not positive" in page


def test_a_fault_leaves_the_others_and_is_told(folder):
    content = json.loads((folder / "atlas.json").read_text())
    broken = next(cell for cell in content["cells"] if (cell["estimator"], cell["optimizer"]) == ("tanh", "sgd"))
    broken |= {"fault": "the loss is nan", "ste": None, "naive": None, "jitter": None, "equivalent_lr_jitter": None}
    (folder / "atlas.json").write_text(json.dumps(content))
    assert write_atlas(folder) == {}
    atlas = read_atlas(folder / "atlas.json")
    assert atlas.pairs["tanh", "sgd"].word == UNKNOWN
    assert atlas.pairs["sine", "sgd"].word == NOT
    assert "tanh under sgd, seed 1, lr 0.05: the loss is nan" in (folder / "atlas.html").read_text()


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
    with pytest.raises(ValueError, match="schema 2 where 1 is known"):
        write_atlas(folder)


def test_the_orders_base_is_the_ratio_of_the_rates(folder):
    atlas = read_atlas(folder / "atlas.json")
    pair = atlas.pairs["tanh", "sgd"]
    (large, *_), (small, *_) = ([cell["ste"] for cell in cells] for cells in pair.cells)
    assert math.log(large / small, SMALLER) == pytest.approx(pair.order.mean)

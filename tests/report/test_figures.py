from __future__ import annotations

import json
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qat_ste.report.style import STYLE
from qat_ste.report.sweep.bands import SHARES, bands
from qat_ste.report.sweep.figures import error_over_training, final_errors, panels_of_groups, panels_of_setup
from qat_ste.report.sweep.findings import find
from qat_ste.report.sweep.gallery import MOST_PANELS, MOST_RUNS, _planned, seeds_of
from tests.report.matrix import ERRORS, copy_run


@pytest.fixture
def sgd(matrix):
    return {group.row: group for group in matrix.findings.groups if group.experiment == "mnist_sgd"}


def test_band_against_slow_computation(sgd):
    key = "jitter/weight_alignment_error"
    band = bands(sgd["default"], [key, "absent/key"])[key]
    curves = []
    for run in sgd["default"].runs:
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        curves.append({row["step"] / 24: row[key] for row in rows if key in row})
    for share in (0.25, 0.5, 1.0):
        values = [curve[share] for curve in curves]
        place = int(np.flatnonzero(np.isclose(SHARES, share))[0])
        assert band.mean[place] == pytest.approx(sum(values) / 3)
        assert (band.low[place], band.high[place]) == (pytest.approx(min(values)), pytest.approx(max(values)))
    assert np.isnan(band.mean[SHARES < 0.25]).all(), "nothing is drawn before the first row"
    assert band.low[-1] < band.mean[-1] < band.high[-1]


def test_panels_have_rows_with_their_controls(sgd):
    panels = panels_of_setup(sgd)
    assert [panel.title for panel in panels] == ["default", "smaller learning rate", "1 bit", "4 bits"]
    assert [curve.label for curve in panels[0].curves] == ["ste", "jitter", "naive", "ste, compared without M"]
    assert [curve.label for curve in panels[1].curves] == ["ste", "scaledown, ste", "scaledown (matched), ste"]
    assert [curve.group.row for curve in panels[3].curves] == ["bits_4"] * 4


@pytest.mark.parametrize("kind", ["over training", "one panel", "at a glance"])
def test_axes_and_legend_do_not_overlap(matrix, sgd, kind):
    with mpl.rc_context(STYLE):
        if kind != "at a glance":
            panels = panels_of_setup(sgd)
            figure = error_over_training(panels if kind == "over training" else panels[:1])
        else:
            rows = [
                (f"optimizer.lr={number}, a rather long name of a row", group)
                for number, group in enumerate(sgd.values())
            ]
            figure = final_errors({"mnist_sgd": rows, "other": rows[:2], "$third_": rows})
        FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    boxes = [axis.get_tightbbox(renderer) for axis in figure.axes] + [figure.legends[0].get_window_extent(renderer)]
    edges = figure.bbox
    for place, box in enumerate(boxes):
        assert edges.x0 - 1 <= box.x0 and box.x1 <= edges.x1 + 1 and edges.y0 - 1 <= box.y0 and box.y1 <= edges.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_each_seed_is_a_dot_and_zero_is_written(finished_run, tmp_path):
    for seed in (1, 2, 3):
        copy_run(finished_run, tmp_path / f"{seed}", seed, None, ERRORS | {"ste": 0.0, "jitter": 0.04 + seed / 1000})
    (group,) = find([tmp_path]).groups
    with mpl.rc_context(STYLE):
        (axis,) = final_errors({"": [("default", group)]}).axes
    dots = [len(collection.get_offsets()) for collection in axis.collections]
    assert dots == [0, 3, 3]
    assert [text.get_text() for text in axis.texts] == ["exactly 0"]
    assert axis.get_title(loc="left") == "", "a panel without an experiment has no title"
    shade = axis.patches[0]
    assert shade.get_x() + shade.get_width() == pytest.approx(2 * (0.041 * 0.042 * 0.043) ** (1 / 3))


def test_captions_give_the_number_of_seeds_or_one_run(finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "1", 1, None, ERRORS)
    plans = {name: caption for name, _, caption, _ in _planned(find([tmp_path]).groups)}
    assert plans["alignment_error"] == "Weight alignment error over training. Lines: one run."
    assert plans["runs_curves"].startswith("One run (runs, seed 1): loss and accuracy")
    copy_run(finished_run, tmp_path / "2", 2, None, ERRORS)
    groups = find([tmp_path]).groups
    plans = {name: caption for name, _, caption, _ in _planned(groups)}
    assert "Lines: mean of 2 seeds; bands: from the lowest to the highest seed." in plans["alignment_error"]
    assert "2 seeds per row; dots: seeds; bars: geometric means" in plans["final_errors"]
    assert seeds_of([groups[0], replace(groups[0], runs=groups[0].runs[:1])]) == "1 to 2 seeds"


def test_captions_give_the_number_of_omitted_configurations(finished_run, tmp_path):
    def lr(number):
        return lambda config: config["optimizer"].update(lr=number / 1000)

    for number in range(1, 15):
        copy_run(finished_run, tmp_path / f"{number}", 1, None, ERRORS, config=lr(number))
    plans = {name: caption for name, _, caption, _ in _planned(find([tmp_path]).groups)}
    assert "drawn" not in plans["final_errors"]
    assert plans["alignment_error"].endswith(f"Only the first {MOST_PANELS} of 14 configurations are drawn.")
    assert f"Only the first {MOST_RUNS} of 14 set-ups are drawn." in plans["optimizer.lr=0.001_curves"]
    assert sum(name.endswith("_curves") for name in plans) == MOST_RUNS
    with mpl.rc_context(STYLE):
        assert len(error_over_training(panels_of_groups(find([tmp_path]).groups[:3])).axes) == 3


def test_figures_are_written_as_files(report):
    names = {path.stem for path in (report.page.parent / "figures").glob("*.png")}
    kinds = ("alignment_error", "alignment_scatter", "movement_scatter", "curves")
    assert names == {"final_errors", *(f"{setup}_{kind}" for setup in ("mnist_sgd", "mnist_adam") for kind in kinds)}
    assert report.failures == {}
    assert report.page.stat().st_size < 2_000_000

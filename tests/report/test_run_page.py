"""The page of one run: its set-up, its tables in narrow and wide windows, and its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qat_ste.report.run.figures import alignment_error, curves
from qat_ste.report.run.page import render
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.style import STYLE
from tests.report.browser import CHROMIUM, run_in_page
from tests.report.matrix import copy_run

MANY = ["ste", "naive", "jitter", "jitter_0.123456789", "mirrored", "ste_once", "replica", "jitter_1e-299999999999"]


@pytest.fixture
def one(finished_run, tmp_path):
    return copy_run(finished_run, tmp_path / "one", 7, {"estimator": "tanh", "dataset": "digits"}, {"ste": 0.05})


@pytest.fixture
def many(finished_run, tmp_path):
    """A run with eight counterparts and tensors with long names."""
    run = copy_run(finished_run, tmp_path / "many", 1, None, {"ste": 0.05, "jitter": 0.04, "naive": 0.25})
    results = change(run)
    ste = results["counterparts"]["ste"]
    layers = {f"backbone.stage{n}.block.conv_with_a_long_name{n}.weight": ste | {"layers": {}} for n in range(3)}
    change(run, counterparts=dict.fromkeys(MANY, ste | {"layers": layers}))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {key.replace("ste/", f"{name}/"): v for key, v in row.items() if key[:4] == "ste/" for name in MANY}
        row |= {f"{name}/weight_alignment_error_unmapped": 0.3 + n / 10 for n, name in enumerate(MANY)}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def change(run, **values):
    results = json.loads((run / "results.json").read_text()) | values
    (run / "results.json").write_text(json.dumps(results))
    return results


def facts(page: str) -> dict[str, str]:
    """The text of each fact by its title; settings are in parentheses."""
    page = page.replace("<small>", " (").replace("</small>", ")")
    return {unescape(name): unescape(text) for name, text in re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page)}


def test_set_up_seed_and_result_come_before_the_first_table(one):
    shown = facts(render(RunFiles(one)).partition("<h2>")[0])
    assert shown["estimator"] == "tanh (k=5.5)"
    assert shown["optimizer"] == "SGD (lr=0.003, momentum=0.9)", "without choices the class"
    assert shown["quantizer"].startswith("– (bits=2, ")
    assert (shown["model"], shown["data"]) == ("small_cnn", "digits")
    assert (shown["seed"], shown["steps"]) == ("7", "24")
    assert re.fullmatch(r"\d+\.?\d* × jitter", shown["alignment error of ste"])


def test_settings_that_do_not_count_are_left_out(one):
    config = change(one)["config"]
    config["quantizer"]["levels"] = "nf4"
    config["dataset"] |= {"root": "/some/folder", "workers": 4, "image_size": 224}
    config["train"]["lr_scale"] = 0.2
    change(one, config=config)
    shown = facts(render(RunFiles(one)))
    assert shown["quantizer"].startswith("– (levels=nf4, ")
    assert "bits=2" not in shown["quantizer"]
    assert shown["data"] == "digits (image_size=224)"
    assert shown["optimizer"] == "SGD (lr=0.003, momentum=0.9, train.lr_scale=0.2)"


@pytest.mark.parametrize(
    ("equivalence", "adjusted"),
    [("remap", "initial weights by M, learning rate by α"), ("keep", "nothing"), ("exact", "nothing: the runs are"), ("none", "nothing: no")],
)  # fmt: skip
def test_alpha_is_shown_only_where_it_is_used(one, equivalence, adjusted):
    change(one, equivalence=equivalence)
    shown = facts(render(RunFiles(one)))
    assert shown["adjusted for the STE"].startswith(f"{equivalence} ({adjusted}")
    assert ("learning-rate factor α" in shown) is (equivalence == "remap")


@pytest.mark.parametrize(
    ("command", "several"),
    [
        ("qat-run estimator=tanh 'counterparts=[ste,jitter]' train.seed=7 hydra.run.dir=/tmp/x",
         "qat-run -m train.seed=1,2,3 estimator=tanh 'counterparts=[ste,jitter]'"),
        ("qat-run -m train.seed=4,5", "qat-run -m train.seed=1,2,3"),
        ("qat-run 'x", None),
        (None, None),
    ],
)  # fmt: skip
def test_one_run_says_which_command_gives_an_interval(one, command, several):
    change(one, command=command)
    page = unescape(render(RunFiles(one)))
    assert "One run, seed 7: an interval needs several seeds." in page
    assert ("This command trains them:</p>" in page) is (several is not None)
    if several is not None:
        assert f'<pre class="command">{several}</pre>' in page


@pytest.mark.parametrize("train", [None, [], {"seed": None}, {"seed": "<b>"}])
def test_a_run_without_a_seed_is_still_one_run(one, train):
    change(one, config=change(one)["config"] | {"train": train})
    assert "One run: an interval needs several seeds." in render(RunFiles(one))


HIDDEN_CELLS = """
  const cells = Array.from(document.querySelectorAll("td, .cards thead th")).filter(cell => cell.offsetParent);
  const labels = Array.from(document.querySelectorAll("td[data-title]")).map(
    cell => getComputedStyle(cell, "::before").content);
  const outside = () => cells.filter(cell => cell.getBoundingClientRect().right > innerWidth).length;
  const seen = { width: innerWidth, outside: outside(), page: document.documentElement.scrollWidth, labels: labels };
  document.querySelectorAll("table").forEach(table => table.className = "");
  seen.control = outside();
  return seen;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [390, 1400])
def test_no_cell_is_cut(many, tmp_path, width):
    page = many / "report.html"
    page.write_text(render(RunFiles(many)))
    seen = run_in_page(page, HIDDEN_CELLS, tmp_path, width).outcome
    assert seen["width"] == width
    assert seen["outside"] == 0
    assert seen["page"] <= width
    if width == 390:
        assert seen["control"] > 0
        assert {f'"{name}"' for name in MANY} < set(seen["labels"])
    else:
        assert set(seen["labels"]) == {"none"}


@pytest.mark.parametrize("draw", [alignment_error, curves])
def test_names_in_figures_are_not_clipped(many, draw):
    with mpl.rc_context(STYLE):
        figure = draw(RunFiles(many))
        FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    (legend,) = figure.legends
    assert len(legend.get_texts()) >= len(MANY)
    boxes = [legend.get_tightbbox(renderer), *(axis.get_tightbbox(renderer) for axis in figure.axes)]
    edges = figure.bbox
    for box in boxes:
        assert edges.x0 - 1 <= box.x0 and box.x1 <= edges.x1 + 1 and edges.y0 - 1 <= box.y0 and box.y1 <= edges.y1 + 1
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])
    assert min(axis.get_window_extent(renderer).height for axis in figure.axes) > 1.2 * figure.dpi


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_backend_that_is_missing_does_not_matter(backend, monkeypatch):
    """A notebook passes MPLBACKEND on to the commands that it starts."""
    monkeypatch.setenv("MPLBACKEND", backend)
    drawing = ("run.page", "sweep.page", "atlas.page", "tune.page", "card.figure")
    modules = ", ".join(f"qat_ste.report.{name}" for name in drawing)
    code = (
        f"import os, {modules}; from qat_ste.report.pages import png; "
        f"from matplotlib.figure import Figure; png(Figure()); assert os.environ['MPLBACKEND'] == {backend!r}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    if backend == "nonsense" or find_spec("matplotlib_inline") is None:
        control = subprocess.run([sys.executable, "-c", "import matplotlib"], capture_output=True, text=True)
        assert "is not a valid value for backend" in control.stderr


def test_the_backend_of_a_notebook_stays_its_own(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "svg")
    code = (
        "import os, qat_ste.report.run.page, matplotlib, matplotlib.pyplot as plt; "
        "assert (os.environ['MPLBACKEND'], matplotlib.rcParams['backend'], plt.get_backend()) == ('svg',) * 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

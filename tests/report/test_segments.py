"""Segments in results.json, on the page of a run and in its figures."""

from __future__ import annotations

import json
import re
from html import unescape

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qat_ste.report.results import MOST_LENGTHS, ForeignError, read_results
from qat_ste.report.run.figures import OF_SEGMENTS, segment_errors, segment_growth
from qat_ste.report.run.page import render, write_report
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.style import STYLE
from qat_ste.report.tables import shown_estimate
from tests.report.browser import CHROMIUM, run_in_page
from tests.report.matrix import copy_run
from tests.report.test_run_page import HIDDEN_CELLS, MANY

ERRORS = {"ste": 0.05, "naive": 0.25, "jitter": 0.04}
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture
def one(segment_run, tmp_path):
    return copy_run(segment_run, tmp_path / "one", 1, None, ERRORS, drawn=True)


@pytest.fixture
def plain_run(finished_run, tmp_path):
    return copy_run(finished_run, tmp_path / "plain", 1, None, ERRORS, drawn=True)


@pytest.fixture
def many(one):
    """A run with eight counterparts, tensors with long names and twenty lengths."""
    results = results_of(one)
    ste = results["segments"]["2"]["ste"]
    wide = {"weight_alignment_error": 1.23e-4, "low": 1.01e-4, "high": 5.43e-3}
    layers = {f"backbone.stage{n}.block.conv_with_a_long_name{n}.weight": INTERVAL for n in range(3)}
    members = dict.fromkeys(MANY, ste | wide | {"layers": layers})
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {f"{name}@2/{key[6:]}": value for key, value in row.items() if key[:6] == "ste@2/" for name in MANY}
    (one / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change(
        one,
        counterparts=dict.fromkeys(MANY, results["counterparts"]["ste"]),
        segments={str(length): members for length in range(2, 2 + MOST_LENGTHS)},
    )
    return one


def results_of(run):
    return json.loads((run / "results.json").read_text())


def change(run, **values):
    (run / "results.json").write_text(json.dumps(results_of(run) | values))


def change_error(run, length, name, **values):
    segments = results_of(run)["segments"]
    segments[length][name] |= values
    change(run, segments=segments)


def section(run) -> str:
    return unescape(render(RunFiles(run))).partition("<h2>Segments</h2>")[2].partition("<h2>")[0]


def test_lengths_ascend_and_numbers_are_those_of_the_file(one):
    results, raw = read_results(one), results_of(one)
    assert list(results["segments"]) == list(results["segment_summary"]["verdicts"]) == [2, 6]
    for length, members in results["segments"].items():
        for name, values in members.items():
            expected = raw["segments"][str(length)][name]
            error = values["weight_alignment_error"]
            assert error["value"] == expected["weight_alignment_error"]
            assert (error["low"], error["high"]) == (expected["low"], expected["high"])
            assert (error["low"] is None) is (length == 6), "four segments have no interval"
            assert values["layers"] == expected["layers"]
    assert results["segment_summary"]["growth"] == raw["segment_summary"]["growth"]


@pytest.mark.slow
def test_old_runs_have_no_segments(plain_run):
    results = read_results(plain_run)
    assert results["segments"] == results["segment_summary"]["verdicts"] == results["segment_summary"]["growth"] == {}
    page = render(RunFiles(plain_run))
    assert "<h2>Segments" not in page and "an interval needs several seeds" in page
    assert write_report(plain_run) == {}
    assert not [path for path in (plain_run / "figures").iterdir() if path.stem in OF_SEGMENTS or path.suffix == ".pdf"]


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ({"0": {}}, "segments.0 is not a length in steps"),
        ({"5.5": {}}, "segments.5.5 is not a length in steps"),
        ({"٣": {}}, "segments.٣ is not a length in steps"),
        ({"9" * 300: {}}, "a name has 300 characters, more than the limit of 200"),
        ({"5": 1}, "segments.5 must be an object, got int"),
        ({"5": {"ste": []}}, "a counterpart of segments.5 must be an object, got list"),
        ({"5": {"ste": {"weight_alignment_error": -1}}}, "segments.5.weight_alignment_error must not be negative"),
        ({"5": {"ste": {"floor": "x"}}}, "segments.floor must be a number, got str"),
        ({"5": {"ste": {"layers": {"w": 1}}}}, "must be an object with an interval, got int"),
        ({"5": {"ste": {"layers": {"\x1b": None}}}}, "a name has unprintable characters"),
        ({str(n): {} for n in range(1, MOST_LENGTHS + 2)}, "segments has 21 lengths, more than the limit of 20"),
    ],
)
def test_foreign_segments_are_refused(one, segments, reason):
    change(one, segments={"5": {"ste": {}, "nobody": 1}})
    assert list(read_results(one)["segments"][5]) == ["ste"], "control: missing numbers, and unknown names"
    change(one, segments=segments)
    with pytest.raises(ForeignError) as error:
        read_results(one)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"low": 0.6, "high": 0.7},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"low": None}, {"high": float("nan")}, {"high": 10**400})
        ),
    ],
)
def test_ends_that_do_not_enclose_the_value_are_dropped(one, values):
    change_error(one, "2", "ste", weight_alignment_error=0.5, low=0.4, high=0.6)
    assert read_results(one)["segments"][2]["ste"]["weight_alignment_error"] == INTERVAL
    change_error(one, "2", "ste", **values)
    expected = {"value": 0.5, "low": None, "high": None}
    assert read_results(one)["segments"][2]["ste"]["weight_alignment_error"] == expected
    assert write_report(one) == {}


@pytest.mark.parametrize(
    ("interval", "digits", "text"),
    [
        (INTERVAL, 3, "0.500 (0.400 to 0.600)"),
        (INTERVAL, 2, "0.50 (0.40 to 0.60)"),
        ({"value": 25.3, "low": 20.0, "high": 131.2}, 3, "25.3 (20.0 to 131)"),
        ({"value": -0.05, "low": -0.1, "high": 0.0}, 2, "-0.050 (-0.10 to 0)"),
        ({"value": 3.46e-5, "low": None, "high": None}, 3, "3.46e-05"),
        ({"value": 0.0, "low": None, "high": None}, 3, "0"),
        (None, 3, "–"),
    ],
)
def test_estimates_are_formatted_with_their_interval(interval, digits, text):
    assert shown_estimate(interval, digits) == text


def test_the_section_has_statements_errors_growth_and_the_method(one):
    shown, results = section(one), results_of(one)
    for verdict in results["segment_summary"]["verdicts"].values():
        assert f"<li>{verdict['statement']}</li>" in shown
    rows = [re.findall("<td.*?>(.*?)</td>", row) for row in re.findall("<tr.*?</tr>", shown)]
    titles = [re.sub("<.*?>", "", row[0]) for row in rows if row]
    assert titles == [f"{length} steps, {name} short" for length in (2, 6) for name in ERRORS]
    error = results["segments"]["2"]["ste"]
    cell = shown_estimate({**error, "value": error["weight_alignment_error"]})
    ratio = shown_estimate(results["segment_summary"]["verdicts"]["2"]["ste_over_jitter"])
    assert (rows[1][1], rows[1][2], rows[1][3]) == (cell, ratio, "12")
    assert " to " in cell and " to " not in rows[4][1]
    assert results["segment_summary"]["method"] in shown
    exponent = shown_estimate(results["segment_summary"]["growth"]["ste"], 2)
    assert f"<dt>exponent of growth of ste</dt><dd>{exponent}</dd>" in shown
    assert "an interval of the whole run’s numbers needs several seeds" in render(RunFiles(one))


def test_only_short_and_undecidable_rows_are_marked_and_explained(one):
    assert "<small>short</small>" in section(one) and "short: the optimizer" in section(one)
    assert "undecidable" not in section(one)
    summary = results_of(one)["segment_summary"]
    for verdict in summary["verdicts"].values():
        verdict["short"] = False
    change(one, segment_summary=summary)
    assert "<small>" not in section(one) and "short: the optimizer" not in section(one)
    change_error(one, "6", "jitter", decidable=False)
    assert section(one).count("<small>undecidable</small>") == 1
    assert "6 steps, jitter <small>undecidable</small>" in section(one)
    assert "undecidable: the error is less than three times the floor of rounding" in section(one)


def test_the_shortest_length_is_shown_by_tensor(one):
    page = render(RunFiles(one))
    table = page.partition("<h2>Segments of 2 steps by tensor</h2>")[2]
    for tensor, interval in results_of(one)["segments"]["2"]["naive"]["layers"].items():
        row = table.partition(f"<td>{tensor}</td>")[2].partition("</tr>")[0]
        assert shown_estimate(interval) in row
    assert "Segments of 6 steps by tensor" not in page


@pytest.mark.slow
def test_figures_are_written_as_png_and_pdf(one):
    assert write_report(one) == {}
    for name in OF_SEGMENTS:
        assert (one / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (one / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f'<a href="figures/{name}.pdf">PDF</a>' in (one / "report.html").read_text()


def test_figures_show_the_numbers(one):
    change_error(one, "2", "jitter", weight_alignment_error=0.0, low=None, high=None)
    change_error(one, "6", "jitter", weight_alignment_error=0.0, low=None, high=None)
    run, raw = RunFiles(one), results_of(one)["segments"]
    with mpl.rc_context(STYLE):
        (growth,), (errors,) = segment_growth(run).axes, segment_errors(run).axes
    lines = {each.get_label(): each for each in growth.lines}
    assert list(lines["ste"].get_ydata()) == [raw[length]["ste"]["weight_alignment_error"] for length in ("2", "6")]
    assert list(lines["floor of rounding"].get_ydata()[1:-1]) == [raw[length]["ste"]["floor"] for length in ("2", "6")]
    assert lines["floor of rounding"].get_linestyle() == "--"
    assert "jitter (exactly 0)" in lines and "naive (exactly 0)" not in lines
    assert [label.get_text() for label in growth.get_xticklabels()] == ["2", "6"]
    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    expected = [row["ste@2/weight_alignment_error"] for row in rows if row.get("segment") == 2]
    assert list(errors.lines[0].get_ydata()) == expected and len(expected) == 12
    assert errors.get_ylabel().startswith("error of a segment of 2 steps")


@pytest.mark.parametrize("draw", [segment_growth, segment_errors])
def test_names_and_ticks_are_not_clipped_and_do_not_overlap(many, draw):
    with mpl.rc_context(STYLE):
        figure = draw(RunFiles(many))
        FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    (legend,), (axis,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == len(MANY) + (draw is segment_growth)
    edges = figure.bbox
    boxes = [legend.get_tightbbox(renderer), axis.get_tightbbox(renderer)]
    for box in boxes:
        assert edges.x0 - 1 <= box.x0 and box.x1 <= edges.x1 + 1 and edges.y0 - 1 <= box.y0 and box.y1 <= edges.y1 + 1
    assert not boxes[0].overlaps(boxes[1])
    ticks = [label.get_window_extent(renderer) for label in axis.get_xticklabels() if label.get_text()]
    assert len(ticks) > 3
    assert not any(left.overlaps(right) for left, right in zip(ticks, ticks[1:], strict=False))


OVERLAPS = """
  const cells = Array.from(document.querySelectorAll("td.interval"));
  const wide = () => cells.filter(cell => cell.scrollWidth > cell.clientWidth + 1).length;
  const seen = { count: cells.length, wide: wide() };
  cells.forEach(cell => cell.className = "");  // as other cells, which do not wrap
  seen.control = wide();
  return seen;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")
@pytest.mark.parametrize("width", [390, 1400])
def test_no_interval_is_cut_or_covers_another(many, tmp_path, width):
    page = many / "report.html"
    page.write_text(render(RunFiles(many)))
    seen = run_in_page(page, HIDDEN_CELLS, tmp_path, width).outcome
    assert (seen["outside"], seen["page"] <= width) == (0, True)
    seen = run_in_page(page, OVERLAPS, tmp_path, width).outcome
    assert (seen["count"] > 0, seen["wide"]) == (True, 0)
    assert (seen["control"] > 0) is (width == 390)

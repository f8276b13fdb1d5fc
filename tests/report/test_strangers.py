"""Run folders from any source: bounds hold, errors fit one line, values are escaped, links are not followed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from qat_ste.base.files import write
from qat_ste.base.run_config import finished
from qat_ste.report.columns import Columns
from qat_ste.report.run.page import render
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.style import plain
from qat_ste.report.sweep.findings import NoRunsError, find
from qat_ste.report.sweep.folders import Problem, Run, find_runs, read_run
from qat_ste.report.sweep.page import render as render_sweep
from qat_ste.report.sweep.paper_table import paper_tables
from qat_ste.report.sweep.summary import summary
from qat_ste.report.writers import csv_text
from tests.report.matrix import ERRORS, copy_run


@pytest.fixture
def one(finished_run, tmp_path):
    return copy_run(finished_run, tmp_path / "one", 1, None, ERRORS, drawn=True)


def change(run, *keys, **values):
    results = json.loads((run / "results.json").read_text())
    inner = results
    for key in keys:
        inner = inner[key]
    inner |= values
    (run / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize("share", [{}, [1], "x", None])
def test_a_share_that_is_not_a_number_is_left_out(one, share):
    change(one, "config", "train", share=share)
    written = json.dumps(summary(find([one])))
    assert '"fraction_of_epochs": []' in written


def deep(levels):
    value = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


@pytest.mark.parametrize(
    ("keys", "values", "reason"),
    [
        ((), {"steps": "x"}, "steps must be a number, got str"),
        ((), {"quantized_weights": [1]}, "quantized_weights must be a number, got list"),
        (("verdict",), {"ste_over_jitter": {}}, "ste_over_jitter must be a number, got dict"),
        (("counterparts", "ste"), {"weight_alignment_error": -0.1}, "ste.weight_alignment_error must not be negative, got -0.1"),
        (("counterparts", "ste"), {"layers": {"a": 3}}, "ste.layers.a must be an object, got int"),
        (("counterparts",), {"x" * 201: {}}, "a name has 201 characters, more than the limit of 200: xxx"),
        (("counterparts",), {"a\x1b[31m": {}}, "a name has unprintable characters: a [31m"),
        (("counterparts",), {f"jitter_{n}": {} for n in range(48)}, "51 counterparts, more than the limit of 50"),
        (("config",), {str(n): n for n in range(10_001)}, "config has more than 10,000 items"),
        (("config",), {"a": deep(16)}, "config has more than 30 levels"),
        (("config",), {"y" * 201: 1}, "a name has 201 characters, more than the limit of 200: yyy"),
        (("metrics",), {"a": "A"}, "metrics.a is not a metric with a title"),
        (("metrics",), {"a": {"title": 3}}, "metrics.a is not a metric with a title"),
        (("metrics",), {"layers": {"title": "A"}}, "metrics.layers is not a metric with a title"),
        (("metrics",), {"a\x1b[31m": {"title": "A"}}, "a name has unprintable characters: a [31m"),
        (("metrics",), {"z" * 201: {"title": "A"}}, "a name has 201 characters, more than the limit of 200: zzz"),
        (("metrics",), {f"{n}": {"title": "A"} for n in range(92)}, "101 metrics, more than the limit of 100"),
        (("counterparts", "ste"), {"weight_alignment_error_unmapped": "x"}, "ste.weight_alignment_error_unmapped must be a number, got str"),
    ],
)  # fmt: skip
def test_content_that_no_run_writes_is_reported_and_skipped(one, keys, values, reason):
    change(one, *keys, **values)
    found = read_run(one)
    assert isinstance(found, Problem)
    assert reason in found.reason
    assert str(found).isprintable()


@pytest.mark.parametrize(
    "key", ["verdict", "versions", "command", "device", "steps", "quantized_weights", "lr_factor", "wall_seconds"]
)
def test_a_page_is_complete_but_for_a_missing_value(one, key):
    results = json.loads((one / "results.json").read_text())
    del results[key]
    (one / "results.json").write_text(json.dumps(results))
    assert "<h2>Reference and counterparts</h2>" in render(RunFiles(one))


def test_numbers_whose_ratios_are_not_finite_are_left_out(one):
    change(one, "counterparts", "ste", weight_alignment_error=1e299)
    change(one, "counterparts", "jitter", weight_alignment_error=1e-300)
    members = read_run(one).members
    assert "weight_alignment_error" not in members["ste"]
    assert members["jitter"]["weight_alignment_error"] == 0
    assert find([one]).groups


@pytest.mark.parametrize("name", ["results.json", "status.json"])
@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", '"done"', "1", '{"status": "done"}']
)
def test_damaged_files_do_not_count_as_a_finished_run(one, name, content):
    config = json.loads((one / "results.json").read_text())["config"]
    assert finished(one, config)
    (one / name).write_text(content)
    assert finished(one, config) is (name == "status.json" and '"done"}' in content)
    assert isinstance(read_run(one), Problem if name == "results.json" else Run)


def test_lone_surrogates_do_not_stop_a_report(one):
    change(one, command="\ud800", config=json.loads((one / "results.json").read_text())["config"] | {"a": "\ud800"})
    findings = find([one])
    page = render(RunFiles(one)) + render_sweep(findings, paper_tables(findings.measured, findings.added), [], {}, one)
    write(one / "report.html", page + "\ud800")
    assert (one / "report.html").read_text().endswith("?")


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "weights.npz", "status.json"])
@pytest.mark.parametrize("kind", ["large", "fifo", "link"])
def test_files_that_no_run_writes_are_not_read(one, name, kind):
    (one / name).unlink()
    if kind == "large":
        with (one / name).open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "fifo":
        os.mkfifo(one / name)
    else:
        (one / name).symlink_to("/dev/zero")
    reasons = {"large": "more than the limit of", "fifo": "is not a regular file", "link": "is a symbolic link"}
    of_base = {
        "large": "are allowed",
        "fifo": "is not a regular file",
        "link": "is a symbolic link",
    }  # read by qat_ste.base
    if name.endswith(".json"):
        found = read_run(one)
        assert isinstance(found, Run) if name == "status.json" else of_base[kind] in found.reason
    else:
        with pytest.raises(OSError, match=reasons[kind]):
            Columns(one / name, ["a"]) if name == "metrics.jsonl" else RunFiles(one).weights("ste/final")


def test_a_figure_that_no_run_writes_is_not_shown(one, tmp_path):
    (one / "figures").mkdir()
    with (one / "figures" / "curves.png").open("wb") as file:
        file.truncate(10 << 30)
    os.mkfifo(one / "figures" / "alignment_error.png")
    (one / "figures" / "movement_scatter.png").symlink_to("/dev/zero")
    assert "<figure>" not in render(RunFiles(one))
    (one / "figures").rename(tmp_path / "elsewhere")
    (one / "figures").symlink_to(tmp_path / "elsewhere")
    (one / "figures" / "alignment_scatter.png").write_bytes(b"x" * 30)
    assert "<figure>" not in render(RunFiles(one))


def test_weights_that_would_fill_the_memory_are_rejected(one):
    def pack(content, key="ste/final"):
        with zipfile.ZipFile(one / "weights.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{key}.npy", content)

    def array(dtype, shape, values=b""):
        header = BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
        return header.getvalue() + values

    pack(array("<f4", (10**12,), bytes(40)))
    assert len(RunFiles(one).weights("ste/final")) == 10, "the content counts, not the declared shape"
    pack(array("<f4", (1 << 26,), bytes(1 << 28)))
    with pytest.raises(ValueError, match=r"has 268,435,584 bytes, more than the limit of 4,194,304"):
        RunFiles(one).weights("ste/final")
    for dtype, shape in (("|O", (3,)), ("<U5", (3,)), ("<f4", (3, 3))):
        pack(array(dtype, shape, bytes(400)))
        with pytest.raises(ValueError, match=r"ste/final must be a list of floats, got shape \("):
            RunFiles(one).weights("ste/final")


def test_rows_whose_steps_are_not_sorted_are_thinned_too(tmp_path):
    rows = [json.dumps({"step": number % 2 * 10**6, "a": number}) for number in range(50_000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert len(Columns(tmp_path / "metrics.jsonl", ["a"]).series("a")) <= 900


@pytest.mark.slow
def test_folders_nested_deeper_than_pythons_recursion_limit(monkeypatch, deep_folder):
    assert len(list(find_runs(deep_folder))) == 1
    monkeypatch.setattr("qat_ste.report.sweep.folders.MOST_RUNS", 0)
    with pytest.raises(NoRunsError, match="more than 0 run folders; report on fewer of them at a time"):
        find([deep_folder])


@pytest.fixture
def deep_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()  # an earlier test may have raised it beyond the longest path
    sys.setrecursionlimit(1000)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    Path(".hydra").mkdir()
    yield tmp_path
    sys.setrecursionlimit(limit)
    os.chdir(tmp_path)
    subprocess.run(["rm", "-rf", "d"], check=True)  # shutil.rmtree recurses, too


def test_long_values_of_a_configuration_still_tell_runs_apart(finished_run, tmp_path):
    for number in range(2):
        copy_run(
            finished_run,
            tmp_path / f"{number}",
            1,
            None,
            ERRORS,
            config=lambda c, n=number: c.update(a="\x1b" * 10**6 + str(n)),
        )
    first, second = find([tmp_path]).groups
    assert first.setup != second.setup
    assert len(first.setup) < 200
    assert first.setup.isprintable()


@pytest.mark.parametrize("text", ["=1", " =1", "\t=1", "\n@x", "＝1", "-1", "+1"])
def test_cells_are_not_formulas(text):
    assert csv_text(text).startswith("'")
    assert csv_text(text).isprintable()


def test_names_are_not_read_as_mathematics():
    assert plain("$\\frac{1}{0}$") == r"\$\frac{1}{0}\$"
    assert plain("_hidden") == "hidden"
    assert len(plain("x" * 10**6)) == 40

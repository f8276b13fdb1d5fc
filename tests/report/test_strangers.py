"""Run folders of strangers: within bounds, told in one line, escaped, through no link."""

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
def test_a_share_that_is_no_number_is_left_out(one, share):
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
        ((), {"steps": "x"}, "steps is str in place of a number"),
        ((), {"quantized_weights": [1]}, "quantized_weights is list in place of a number"),
        (("verdict",), {"ste_over_jitter": {}}, "ste_over_jitter is dict in place of a number"),
        (("counterparts", "ste"), {"weight_alignment_error": -0.1}, "and no distance is negative"),
        (("counterparts", "ste"), {"layers": {"a": 3}}, "ste.layers is not of objects"),
        (("counterparts",), {"x" * 201: {}}, "a name of 201 characters where 200 are the most"),
        (("counterparts",), {"a\x1b[31m": {}}, "a name has characters that cannot be printed: a [31m"),
        (("counterparts",), {f"jitter_{n}": {} for n in range(48)}, "51 counterparts where 50 are the most"),
        (("config",), {str(n): n for n in range(10_001)}, "config has more than 10000 items"),
        (("config",), {"a": deep(16)}, "config is nested more than 30 deep"),
        (("config",), {"y" * 201: 1}, "a name of 201 characters where 200 are the most"),
        (("metrics",), {"a": "A"}, "metrics.a is no metric with a title"),
        (("metrics",), {"a": {"title": 3}}, "metrics.a is no metric with a title"),
        (("metrics",), {"layers": {"title": "A"}}, "metrics.layers is no metric with a title"),
        (("metrics",), {"a\x1b[31m": {"title": "A"}}, "a name has characters that cannot be printed: a [31m"),
        (("metrics",), {"z" * 201: {"title": "A"}}, "a name of 201 characters where 200 are the most"),
        (("metrics",), {f"{n}": {"title": "A"} for n in range(92)}, "101 metrics where 100 are the most"),
        (("counterparts", "ste"), {"weight_alignment_error_unmapped": "x"}, "is str in place of a number"),
    ],
)  # fmt: skip
def test_what_no_run_writes_is_told_and_not_counted(one, keys, values, reason):
    change(one, *keys, **values)
    found = read_run(one)
    assert isinstance(found, Problem)
    assert reason in found.reason
    assert str(found).isprintable()


@pytest.mark.parametrize(
    "key", ["verdict", "versions", "command", "device", "steps", "quantized_weights", "lr_factor", "wall_seconds"]
)
def test_a_page_lacks_only_what_is_absent(one, key):
    results = json.loads((one / "results.json").read_text())
    del results[key]
    (one / "results.json").write_text(json.dumps(results))
    assert "<h2>Reference and counterparts</h2>" in render(RunFiles(one))


def test_numbers_whose_ratios_would_be_none_are_left_out(one):
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
def test_whatever_is_in_the_files_a_finished_run_is_looked_for(one, name, content):
    config = json.loads((one / "results.json").read_text())["config"]
    assert finished(one, config)
    (one / name).write_text(content)
    assert finished(one, config) is (name == "status.json" and '"done"}' in content)
    assert isinstance(read_run(one), Problem if name == "results.json" else Run)


def test_half_characters_do_not_stop_a_report(one):
    change(one, command="\ud800", config=json.loads((one / "results.json").read_text())["config"] | {"a": "\ud800"})
    findings = find([one])
    page = render(RunFiles(one)) + render_sweep(findings, paper_tables(findings.measured, findings.added), [], {}, one)
    write(one / "report.html", page + "\ud800")
    assert (one / "report.html").read_text().endswith("?")


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "weights.npz", "status.json"])
@pytest.mark.parametrize("kind", ["large", "fifo", "link"])
def test_files_that_are_none_of_a_run_are_not_read(one, name, kind):
    (one / name).unlink()
    if kind == "large":
        with (one / name).open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "fifo":
        os.mkfifo(one / name)
    else:
        (one / name).symlink_to("/dev/zero")
    word = {"large": "are the most", "fifo": "is no file", "link": "is a link"}[kind]
    if name.endswith(".json"):
        found = read_run(one)
        assert isinstance(found, Run) if name == "status.json" else word in found.reason
    else:
        with pytest.raises(OSError, match=word):
            Columns(one / name, ["a"]) if name == "metrics.jsonl" else RunFiles(one).weights("ste/final")


def test_a_figure_that_is_not_ours_is_not_shown(one, tmp_path):
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


def test_weights_that_would_fill_the_memory_are_refused(one):
    def pack(content, key="ste/final"):
        with zipfile.ZipFile(one / "weights.npz", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"{key}.npy", content)

    def array(dtype, shape, values=b""):
        header = BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
        return header.getvalue() + values

    pack(array("<f4", (10**12,), bytes(40)))
    assert len(RunFiles(one).weights("ste/final")) == 10, "what is there counts, not what is declared"
    pack(array("<f4", (1 << 26,), bytes(1 << 28)))
    with pytest.raises(ValueError, match=r"has 268,435,584 bytes where 4,194,304 are the most"):
        RunFiles(one).weights("ste/final")
    for dtype, shape in (("|O", (3,)), ("<U5", (3,)), ("<f4", (3, 3))):
        pack(array(dtype, shape, bytes(400)))
        with pytest.raises(ValueError, match="ste/final is of shape"):
            RunFiles(one).weights("ste/final")


def test_steps_to_and_fro_are_thinned_too(tmp_path):
    rows = [json.dumps({"step": number % 2 * 10**6, "a": number}) for number in range(50_000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert len(Columns(tmp_path / "metrics.jsonl", ["a"]).series("a")) <= 900


@pytest.mark.slow
def test_folders_within_folders_deeper_than_python_recurs(monkeypatch, deep_folder):
    assert len(list(find_runs(deep_folder))) == 1
    monkeypatch.setattr("qat_ste.report.sweep.folders.MOST_RUNS", 0)
    with pytest.raises(NoRunsError, match="more than 0 run folders; report on some of them at a time"):
        find([deep_folder])


@pytest.fixture
def deep_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()  # what ran before may have raised it beyond what a path can hold
    sys.setrecursionlimit(1000)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    Path(".hydra").mkdir()
    yield tmp_path
    sys.setrecursionlimit(limit)
    os.chdir(tmp_path)
    subprocess.run(["rm", "-rf", "d"], check=True)  # Python's own recurs too


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
def test_no_cell_is_a_formula(text):
    assert csv_text(text).startswith("'")
    assert csv_text(text).isprintable()


def test_names_are_no_mathematics():
    assert plain("$\\frac{1}{0}$") == r"\$\frac{1}{0}\$"
    assert plain("_hidden") == "hidden"
    assert len(plain("x" * 10**6)) == 40

"""Folders of a sweep's jobs: different overrides have different names, and folders of older versions are found."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from qat_ste.app.sweep import folder_name, job_folder_name
from tests.app.test_sweep import FEW, sweep, table

ALIKE = [  # each line: overrides of jobs that differ only in special characters
    ("e='2 + u**2'", "e='2 + u*2'", "e='2 + u/2'", "e='(2 + u)/2'", "e='2 +u*2'"),
    ("x=[1,2]", "x=[[1,2]]", "x=[[1],2]", "x='[1,2]'"),
    ("x=[1]", "x=-1", "x=(1)", "x='-1'"),
    ("path=a/b", "path=a//b", "path=a-b", "path=a b", "path=a:b"),
    ("x=" + "a" * 200 + "/b", "x=" + "a" * 200 + "-b", "x=" + "a" * 200 + " b"),
    ("x=\udcff", "x=\udcfe", "x=ü"),
]


@pytest.mark.parametrize("jobs", ALIKE)
def test_jobs_that_differ_only_in_punctuation_have_different_names(jobs, tmp_path):
    assert len({folder_name(job) for job in jobs}) < len(jobs), "without a hash some are equal"
    names = [job_folder_name(job, str(tmp_path), []) for job in jobs]
    assert len({*names}) == len(jobs)
    assert all(len(name) < 128 and not re.search(r"[^\w.,=+-]", name) for name in names)


def test_a_name_without_special_characters_has_no_hash(tmp_path):
    assert job_folder_name("estimator=tanh,optimizer.lr=1e-3", str(tmp_path), []) == "estimator=tanh,optimizer.lr=1e-3"
    assert job_folder_name("", str(tmp_path), []) == "default"


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_of_an_older_version_is_found_only_by_its_own_overrides(tmp_path, finished):
    overrides = ["paths.output=runs", "e='2 + u**2'", "d=[1,2]"]
    folder = tmp_path / "d=-1,2-,e=-2-+-u-2"
    (folder / ".hydra").mkdir(parents=True)
    written = ["e='2 + u*2'", "d=[1,2]"] if finished else overrides  # a rejected later job writes Hydra's file
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(written))
    if finished:
        (folder / "results.json").write_text(json.dumps({"command": shlex.join(["qat-run", *overrides])}))
    assert job_folder_name("d=[1,2],e='2 + u**2'", str(tmp_path), ["paths.output"]) == folder.name
    assert job_folder_name("d=[1,2],e='2 + u*2'", str(tmp_path), ["paths.output"]) != folder.name
    assert job_folder_name("d=[1,2],e='2 + u**2'", str(tmp_path), []) != folder.name
    for content in ("", "[", "{}", "[1]"):
        (folder / ".hydra" / "overrides.yaml").write_text(content)
        (folder / "results.json").write_text(content)
        assert job_folder_name("d=[1,2],e='2 + u**2'", str(tmp_path), ["paths.output"]) != folder.name


@pytest.mark.slow
def test_two_formulas_are_two_runs_and_an_older_folder_is_skipped(tmp_path):
    arguments = *FEW, "estimator=formula", "estimator.expression='2 + u**2','2 + u*2'"
    code, out, err = sweep(tmp_path, *arguments)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("2 done: ")
    (run, other) = (path for path in (tmp_path / "sweeps").glob("*/*") if path.is_dir())
    overrides = [line.removeprefix("- ") for line in (run / ".hydra" / "overrides.yaml").read_text().splitlines()]
    kept = sorted(override for override in overrides if not override.startswith("paths."))
    old = run.with_name(folder_name(",".join(kept)))
    run.rename(old)
    code, out, err = sweep(tmp_path, *arguments)
    assert code == 0, err
    assert {name: cells[0] for name, cells in table(out).items()} == {old.name: "skipped", other.name: "skipped"}

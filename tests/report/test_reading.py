from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from qat_ste.base.sections import SECTIONS
from qat_ste.report.columns import CHUNKS, Columns
from qat_ste.report.sweep.findings import NoRunsError, find
from qat_ste.report.sweep.folders import Problem, Run, find_runs, outcome, read_run
from qat_ste.report.sweep.groups import group_runs
from qat_ste.report.sweep.labels import labels, with_options
from tests.report.matrix import ERRORS, copy_run


@pytest.fixture
def one(finished_run, tmp_path):
    return copy_run(finished_run, tmp_path / "one", 1, None, ERRORS)


def test_runs_of_versions_without_choices_and_status(one):
    (one / "status.json").unlink()
    run = read_run(one)
    assert isinstance(run, Run)
    assert (run.seed, run.choices, run.members["jitter"]["weight_alignment_error"]) == (1, {}, 0.04)
    (group,), _ = group_runs([run])
    assert (group.experiment, group.row, group.setup) == (None, "default", "runs")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "results.json is empty"),
        (" \n", "results.json is empty"),
        ('{"schema": 1, "config": {"train": {"se', "results.json is truncated: it ends after 38 characters"),
        ('{"schema": 1, "config": {"train": ', "results.json is truncated: it ends after 34 characters"),
        ("[1, 2]", "results.json is not qat-run's: it must be an object, got list"),
        ('{"accuracy": 0.9}', "results.json is not qat-run's: it lacks config, reference, counterparts"),
        ("{'schema': 1}", "results.json is not JSON: Expecting property name enclosed in double quotes in line 1"),
        ('{"config": {"a": 1}, "reference": {"b": 1}, "counterparts": {"ste": 3}}',
         "results.json is not qat-run's: ste must be an object, got int"),
        ('{"config": {"a": 1}, "reference": {"test_loss": "x"}, "counterparts": {"ste": {}}}',
         "results.json is not qat-run's: reference.test_loss must be a number, got str"),
        ('{"schema": 2, "config": {"a": 1}, "reference": {"b": 1}, "counterparts": {"ste": {}}}',
         "results.json is not qat-run's: schema must be 1, got 2"),
        ("[" * 100_000, "results.json is nested too deeply"),
        (b"\xff\xfe", "results.json is not text"),
    ],
)  # fmt: skip
def test_broken_results_are_reported_in_one_line(one, content, reason):
    (one / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_run(one) == Problem(one, "broken", reason)


@pytest.mark.parametrize("status", ["running", "preempted", "failed"])
def test_unfinished_runs_are_skipped_even_with_results(one, status):
    content = {"status": status, "step": 12, "wall_seconds": 1.0, "error": "a\nb\x1b[31m"}
    (one / "status.json").write_text(json.dumps(content))
    assert str(read_run(one)) == f"{one}: {status}: at step 12: a b [31m"


def test_null_and_non_finite_numbers_count_as_missing(one):
    text = (one / "results.json").read_text().replace('"weight_alignment_error": 0.05', '"weight_alignment_error": NaN')
    results = json.loads(text)
    results["counterparts"]["jitter"]["weight_alignment_error"] = None
    results["counterparts"]["naive"]["weight_alignment_error"] = 10**400
    (one / "results.json").write_text(json.dumps(results))
    run = read_run(one)
    assert [("weight_alignment_error" in run.members[name]) for name in ERRORS] == [False, False, False]


def test_links_are_not_followed(one, finished_run, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "linked").symlink_to(one)
    assert list(find_runs(sweep)) == []
    (sweep / "run").mkdir()
    (sweep / "run" / "results.json").symlink_to(one / "results.json")
    with pytest.raises(NoRunsError) as caught:
        find([sweep])
    assert [str(problem) for problem in caught.value.problems] == [
        f"{sweep / 'run'}: broken: results.json is a symbolic link, which is not followed; put the file itself there"
    ]
    assert list(find_runs(tmp_path / "sweep" / "linked")) == [sweep / "linked"], "a folder named by the user is read"


def test_runs_within_runs_and_in_hidden_folders_are_skipped(one, finished_run, tmp_path):
    copy_run(finished_run, one / "inner", 2, None, ERRORS)
    copy_run(finished_run, tmp_path / ".hidden", 3, None, ERRORS)
    (tmp_path / "other" / ".hydra").mkdir(parents=True)
    assert list(find_runs(tmp_path)) == [one, tmp_path / "other"]
    assert read_run(tmp_path / "other").status == "unfinished"


def test_each_run_counts_once(one, finished_run, tmp_path):
    copy_run(finished_run, tmp_path / "two", 1, None, ERRORS)
    copy_run(finished_run, tmp_path / "three", 2, None, ERRORS)
    found = find([tmp_path, one, tmp_path / "two" / ".." / "three"])
    assert [len(group.runs) for group in found.groups] == [2]
    (problem,) = found.problems
    assert (problem.folder, problem.status) == (one, "repeated")
    assert "seed 1" in problem.reason
    assert str(tmp_path / "two") in problem.reason


def test_groups_are_named_by_the_keys_in_which_they_differ(finished_run, tmp_path):
    def lr(value):
        return lambda config: config["optimizer"].update(lr=value)

    def adam(config):
        config["optimizer"] = {"_target_": "torch.optim.Adam", "lr": 0.003, "eps": 1e-8}

    for number, (change, seed) in enumerate([(lr(0.003), 1), (lr(0.003), 2), (lr(0.01), 1), (adam, 1)]):
        copy_run(finished_run, tmp_path / f"{number}", seed, {"experiment": None}, ERRORS, config=change)
    groups = find([tmp_path]).groups
    assert [(group.setup, len(group.runs)) for group in groups] == [
        ("optimizer=Adam", 1),
        ("optimizer=SGD, optimizer.lr=0.003", 2),
        ("optimizer=SGD, optimizer.lr=0.01", 1),
    ]


def test_labels_name_options_and_not_classes(finished_run, tmp_path):
    def estimator(target):
        return lambda config: config.update(estimator={"_target_": f"qat_ste.estimators.{target}"})

    for name in ("tanh", "arctan"):
        copy_run(finished_run, tmp_path / name, 1, {"estimator": name}, ERRORS, config=estimator(name.title()))
    assert [group.setup for group in find([tmp_path]).groups] == ["estimator=arctan", "estimator=tanh"]
    copy_run(finished_run, tmp_path / "older", 1, None, ERRORS, config=estimator("Sine"))
    setups = [group.setup for group in find([tmp_path]).groups]
    assert setups == ["estimator=Arctan", "estimator=Sine", "estimator=Tanh"], "one run has no option's name"


def test_options_and_classes_that_do_not_distinguish_are_not_used():
    configs = [{"a._target_": target} for target in ("x.A", "y.A")]
    assert with_options(configs, [{"a": "one"}, {"a": "two"}]) == [{"a._target_": "one"}, {"a._target_": "two"}]
    assert with_options(configs, [{"a": "one"}, {"a": "one"}]) == configs
    assert with_options(configs[:1], [{}]) == [{"a._target_": "A"}]
    assert with_options([{"a._target_": [1]}], [{}]) == [{"a._target_": "[1]"}]


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        ({"outcome": "claim fails", "statement": "In this run the paper's claim fails: …"}, "claim fails"),
        ({"statement": "The estimator did not matter: the STE with …"}, "did not matter"),
        ({"statement": "No verdict: the comparison has no …"}, "No verdict"),
        ({"statement": "x" * 100}, "x" * 59 + "…"),
        ({"statement": None}, "–"),
        ({}, "–"),
    ],
)
def test_outcome_of_new_and_older_runs(verdict, text):
    assert outcome(verdict) == text


def test_columns_of_a_long_run_keep_extremes_in_little_memory(tmp_path):
    path, rows, peak = tmp_path / "metrics.jsonl", 60_000, 47_113
    with path.open("w") as file:
        for step in range(rows):
            value = {peak: 5.0, 3: -5.0, rows - 1: np.sin(59.85)}.get(
                step, np.sin(step / 1000)
            )  # the last is no extreme
            file.write(json.dumps({"step": step, "a": value, "other": "x" * 50}) + "\n")
        file.write('{"step": 60000, "a": 0.')
    tracemalloc.start()
    columns = Columns(path, ["a", "b"])
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    series = columns.series("a")
    assert columns.broken_lines == 1
    assert len(columns.series("b")) == len(columns.series("c")) == 0
    assert len(series) <= 4 * CHUNKS
    assert {tuple(point) for point in series} >= {(peak, 5.0), (3, -5.0)}
    assert series[-1, 0] == rows - 1
    assert np.interp(30_123.0, *series.T) == pytest.approx(np.sin(30.123), abs=0.2)
    assert highest < 8e6


def test_columns_skip_lines_that_are_not_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2}\n[1]\n{"a": 3}\nnonsense\n{"step": "x", "a": 1}\n{"step": 2, "a": "y"}\n')
    columns = Columns(path, ["a"])
    assert columns.series("a").tolist() == [[1.0, 2.0]]
    assert columns.broken_lines == 4
    assert Columns(tmp_path / "absent", ["a"]).series("a").shape == (0, 2)


def test_runs_of_versions_with_fewer_keys_join_the_same_group(finished_run, tmp_path):
    def earlier(config):
        for section, key in (
            ("train", "accumulate"),
            ("train", "clip_norm"),
            ("runtime", "devices"),
            ("quantizer", "levels"),
        ):
            assert config[section].pop(key) == SECTIONS[section].defaults()[key]

    copy_run(finished_run, tmp_path / "now", 1, None, ERRORS)
    copy_run(finished_run, tmp_path / "then", 2, None, ERRORS, config=earlier)
    assert [len(group.runs) for group in find([tmp_path]).groups] == [2]


def test_long_labels_name_only_the_keys_they_need():
    long = [{"a": "x" * 50, "b": number, "c": "y" * 80 + str(number // 2), "d": number % 2} for number in range(4)]
    assert labels(long) == ["b=0", "b=1", "b=2", "b=3"]
    crossed = [{"c": "y" * 90 + str(number // 2), "d": number % 2, "e": 1} for number in range(4)]
    assert [label[-3:] for label in labels(crossed)] == ["d=0", "d=1", "d=0", "d=1"]
    assert len(set(labels(crossed))) == 4
    assert labels(long[:1]) == [""]

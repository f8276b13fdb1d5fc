"""Answers of a tuning study, against scipy's tests, a slow reference of Holm's method, and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qat_ste.report.tune.answers import MOST_SEEDS, Sample, answers, holm, seeds_to_decide, summarize
from qat_ste.report.tune.comparison import Comparison
from qat_ste.report.tune.study import Study
from tests.report.tuning import flat, invented

RATES = (0.01, 0.03, 0.09)


def generator():
    return np.random.default_rng(3)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_p_values_and_intervals_are_those_of_scipys_paired_test(seeds):
    one, other = generator().normal(0.9, 0.02, (2, 7, seeds))
    sample = summarize(one - other)
    expected = stats.ttest_rel(one, other, axis=-1)
    assert sample.p_values() == pytest.approx(expected.pvalue, rel=1e-9)
    for confidence in (0.9, 0.95):
        interval = expected.confidence_interval(confidence)
        assert sample.mean - sample.half_width(confidence) == pytest.approx(interval.low, rel=1e-9)
        assert sample.mean + sample.half_width(confidence) == pytest.approx(interval.high, rel=1e-9)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_within_the_margin_is_two_one_sided_tests(seeds):
    values = generator().normal(0, 0.01, (4000, seeds)) + generator().normal(0, 0.006, (4000, 1))
    margin = 0.012
    lower = stats.ttest_1samp(values, -margin, axis=-1, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, margin, axis=-1, alternative="less").pvalue
    expected = np.maximum(lower, upper) <= 0.05
    assert 100 < expected.sum() < 3900
    assert (summarize(values).within(margin) == expected).all()


def slow_holm(p):
    """The step-down method as its paper describes it: the smallest p times m, the next times m - 1, never falling."""
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def test_holm_by_hand_and_against_the_slow_reference():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.6])) == pytest.approx([1.0, 1.0])
    for size in (1, 2, 17):
        p = generator().uniform(0, 1, (50, size)) ** 4
        p[0] = 0.01  # ties
        assert holm(p) == pytest.approx(np.array([slow_holm(list(row)) for row in p]))


def test_holm_counts_an_estimator_without_numbers_in_the_family():
    corrected = holm(np.array([0.01, math.nan, 0.02]))
    assert corrected[[0, 2]] == pytest.approx([0.03, 0.04])
    assert math.isnan(corrected[1])


def slow_seeds(mean, sd, margin, family):
    """The first number of seeds at which the planned test decides, by trying one after the other."""
    for n in range(3, MOST_SEEDS + 1):
        t = stats.t(n - 1)
        error = sd / math.sqrt(n)
        differs = abs(mean) >= (t.ppf(1 - 0.05 / (2 * family)) + t.ppf(0.8)) * error
        equivalent = abs(mean) + (t.ppf(0.95) + t.ppf(0.9)) * error <= margin
        if differs or equivalent:
            return n
    return MOST_SEEDS + 1


@pytest.mark.parametrize("family", [1, 17])
def test_seeds_to_decide_by_brute_force(family):
    means = [0.0, 0.004, -0.009, 0.02, -0.05]
    sds = [0.003, 0.01, 0.03]
    expected = [[slow_seeds(mean, sd, 0.01, family) for mean in means] for sd in sds]
    computed = seeds_to_decide(np.array(means), np.array(sds)[:, None], 0.01, family)
    assert computed.tolist() == expected


def test_more_than_the_most_seeds():
    assert seeds_to_decide(np.array(0.01), np.array(2.0), 0.0101, 17) == MOST_SEEDS + 1
    assert seeds_to_decide(np.array(0.0), np.array(0.0), 0.01, 17) == 3


def test_undecided_studies_need_more_seeds_than_they_have():
    values = generator().normal(0, 0.02, (3000, 4, 6)) + generator().normal(0, 0.02, (3000, 4, 1))
    result = answers(values, 0.01)
    undecided = result.answer == "undecided"
    assert undecided.any() and not undecided.all()
    assert (result.seeds[undecided] > 6).all()
    assert np.isnan(result.seeds[~undecided]).all()


def one(differences, margin=0.01):
    """Answer and p value of a study of one estimator."""
    result = answers(np.array([differences], dtype=float), margin)
    return str(result.answer[0]), float(result.p[0])


def test_differences_without_variance():
    assert one([0, 0, 0]) == ("equivalent", 1.0)
    assert one([0.005] * 5) == ("equivalent", 0.0)
    assert one([0.05] * 5) == ("better", 0.0)
    assert one([-0.05] * 5) == ("worse", 0.0)
    assert summarize(np.array([0.1] * 3)).sd == 0, "the mean of three times 0.1 is not 0.1 to the last digit"


@pytest.mark.parametrize("differences", [[0.0], [0.0, 0.0], [0.05], [0.05, 0.06]])
def test_fewer_than_three_seeds_decide_nothing(differences):
    result = answers(np.array([differences]), 0.01)
    assert result.answer.tolist() == ["undecided"]
    assert np.isnan(result.p).all() and np.isnan(result.seeds).all()


def test_each_answer():
    assert one([0.001, -0.001, 0.0005, 0.0])[0] == "equivalent"
    assert one([0.05, 0.051, 0.049, 0.05])[0] == "better"
    assert one([-0.05, -0.051, -0.049, -0.05])[0] == "worse"
    assert one([0.05, -0.051, 0.049, -0.05])[0] == "undecided"
    assert one([0.05, math.nan, 0.049, -0.05])[0] == "no numbers"


def test_equivalent_takes_precedence_over_a_certain_difference():
    answer, p = one([0.005, 0.0051, 0.0049, 0.005])
    assert answer == "equivalent"
    assert p < 0.001


def test_the_correction_changes_answers():
    certain = [0.02, 0.03, 0.025, 0.02, 0.035]
    family = np.array([certain] + [[0.03, -0.03, 0.02, -0.02, 0.001]] * 400)
    assert one(certain)[0] == "better"
    assert answers(family, 0.01).answer[0] == "undecided"


def test_one_code_for_one_study_and_for_many():
    values = generator().normal(0.004, 0.01, (6, 3, 5))
    margins = np.linspace(0.005, 0.02, 6)[:, None]
    together = answers(values, margins)
    for number in range(6):
        alone = answers(values[number], float(margins[number, 0]))
        assert alone.answer.tolist() == together.answer[number].tolist()
        assert alone.p == pytest.approx(together.p[number])
        assert alone.seeds == pytest.approx(together.seeds[number], nan_ok=True)


def test_no_seeds_have_no_mean():
    sample = summarize(np.empty((2, 0)))
    assert isinstance(sample, Sample)
    assert np.isnan(sample.mean).all()


def rows(ste, tests, metric="accuracy", **other):
    """Rows of a study whose best rate is the middle one; ``ste`` and ``tests`` hold test metrics by seed."""
    sign = 1 if metric == "accuracy" else -1
    outer = [0.5 - 0.2 * sign] * len(ste)
    content = flat(
        {name: {0.01: outer, 0.03: [0.5] * len(ste), 0.09: outer} for name in ("ste", *tests)}, metric=metric, **other
    )
    for each in content["cells"]:
        if each["lr"] == 0.03:
            each[f"test_{metric}"] = ({"ste": ste} | tests)[each["estimator"]][each["seed"] - 1]
    comparison = Comparison(Study(content))
    return comparison, {row.label: row for row in comparison.rows}


def test_the_same_cells_are_equivalent_and_never_better():
    ste = [0.91, 0.88, 0.93, 0.9, 0.86]
    for metric in ("accuracy", "loss"):
        _, by_label = rows(ste, {"ste (again)": ste}, metric)
        row = by_label["ste (again)"]
        assert (row.answer, row.p, row.distance) == ("equivalent", 1.0, pytest.approx(math.log(0.5) / math.log(3)))
        assert row.difference.mean.mean == row.difference.mean.low == row.difference.mean.high == 0


def test_of_a_loss_smaller_is_better_and_the_margin_relative():
    ste = [2.0, 2.1, 1.9, 2.0]
    shifts = {"low": -0.5, "high": 0.5, "near": 0.01}
    noise = [0.001, -0.001, 0.002, 0.0]
    tests = {name: [s + shift + n for s, n in zip(ste, noise, strict=True)] for name, shift in shifts.items()}
    comparison, by_label = rows(ste, tests, "loss", margin=0.01)
    assert comparison.margin == pytest.approx(0.02)
    assert {name: row.answer for name, row in by_label.items()} == {
        "low": "better", "high": "worse", "near": "equivalent"
    }  # fmt: skip
    assert by_label["low"].difference.mean.mean == pytest.approx(0.4995)
    comparison, by_label = rows(ste, tests, "loss", margin=0.001)
    assert by_label["near"].answer == "worse"


def test_pairs_are_of_the_same_seed():
    ste = [0.7, 0.8, 0.9, 0.75, 0.85]
    gains = [0.02, 0.021, 0.019, 0.02, 0.0205]
    better = [s + gain for s, gain in zip(ste, gains, strict=True)]
    assert rows(ste, {"tanh": better})[1]["tanh"].answer == "better"
    assert rows(ste, {"tanh": better[2:] + better[:2]})[1]["tanh"].answer == "undecided", "paired with other seeds"


def test_swap_and_adjusted_of_the_invented_study():
    content = invented()
    comparison = Comparison(Study(content))
    cells = {(c["estimator"], c["role"], c["of"], c["lr"], c["seed"]): c["test_accuracy"] for c in content["cells"]}
    best = comparison.ste.best

    def mean(*place):
        return sum(cells[(*place, seed)] for seed in content["seeds"]) / len(content["seeds"])

    compared = 0
    for row in comparison.rows:
        at_best = mean("ste", "grid", None, best)
        assert row.difference.mean.mean == pytest.approx(mean(row.label, "grid", None, row.best) - at_best)
        if row.swap.diverged:
            assert row.swap.mean is None
        else:
            assert row.swap.mean.mean == pytest.approx(at_best - mean("ste", "grid", None, row.best))
        if row.adjusted is not None and row.adjusted.mean is not None:
            compared += 1
            gain = mean("ste", "adjusted", row.label, row.best) - mean(row.label, "grid", None, row.best)
            assert row.adjusted.mean.mean == pytest.approx(gain)
    assert compared > 5
    assert comparison.counts().keys() >= {"equivalent", "better", "worse"}
    again = comparison.rows[-1]
    assert (again.label, again.answer, again.swap.mean.mean) == ("ste (again)", "equivalent", 0)

"""Error rates of a tuning study's answers, over thousands of simulated studies."""

from __future__ import annotations

import numpy as np
import pytest

from qat_ste.report.tune import answers as answers_module
from qat_ste.report.tune.answers import BETTER, EQUIVALENT, UNDECIDED, WORSE, answers, seeds_to_decide

pytestmark = pytest.mark.slow
STUDIES, ESTIMATORS, MARGIN = 2000, 17, 0.01
MOST_ERRORS = 0.065  # 5 %, and three standard errors of a rate over 2,000 studies


def simulated(true, seeds, sd=0.005, seed=1):
    """Answers of studies with these true differences, by estimator; all are compared with the same STE.

    Args:
        sd: of a difference; the STE's own noise, which all differences share, has half of its variance.
    """
    random = np.random.default_rng(seed)
    alone = random.normal(0, sd / 2**0.5, (STUDIES, ESTIMATORS, seeds))
    ste = random.normal(0, sd / 2**0.5, (STUDIES, 1, seeds))
    return answers(np.reshape(true, (-1, 1)) + alone - ste, MARGIN).answer


def share_with_error(answer):
    """Share of the studies in which at least one estimator is called better or worse."""
    return float(np.isin(answer, [BETTER, WORSE]).any(axis=-1).mean())


@pytest.mark.parametrize("seeds", [3, 5, 20])
@pytest.mark.parametrize("sd", [0.005, 0.05])  # with the smaller one, most estimators are equivalent
def test_without_a_difference_few_studies_find_one(seeds, sd):
    answer = simulated(np.zeros(ESTIMATORS), seeds, sd)
    assert share_with_error(answer) <= MOST_ERRORS
    if (seeds, sd) == (20, 0.005):
        assert (answer == EQUIVALENT).mean() > 0.99
    if sd == 0.05:
        assert share_with_error(answer) > 0.01, "the test is not idle"


@pytest.mark.parametrize("seeds", [5, 20])
def test_without_holms_correction_most_studies_would_find_one(seeds, monkeypatch):
    monkeypatch.setattr(answers_module, "holm", lambda p: p)
    assert share_with_error(simulated(np.zeros(ESTIMATORS), seeds, 0.05)) > 0.3


@pytest.mark.parametrize("seeds", [5, 20])
def test_true_differences_do_not_raise_the_errors_of_the_others(seeds):
    true = np.array([0.2] * 8 + [0.0] * 9)
    answer = simulated(true, seeds, 0.03)
    assert (answer[:, :8] == BETTER).mean() > 0.99
    assert share_with_error(answer[:, 8:]) <= MOST_ERRORS


@pytest.mark.parametrize("seeds", [3, 5, 20])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("sd", [0.002, 0.01])
def test_a_difference_of_one_margin_is_seldom_equivalent(seeds, sign, sd):
    answer = simulated(np.full(ESTIMATORS, sign * MARGIN), seeds, sd)
    rate = (answer == EQUIVALENT).mean()
    assert rate <= MOST_ERRORS
    if sd == 0.002:
        assert rate > 0.035, "the level is used"
    assert np.isin(answer, [WORSE if sign > 0 else BETTER]).any(axis=-1).mean() <= MOST_ERRORS


def test_intervals_of_one_side_would_be_equivalent_too_often():
    """Negative control: a mean within the margin, without its interval, is no evidence of equivalence."""
    random = np.random.default_rng(2)
    means = random.normal(MARGIN, 0.005, (STUDIES, ESTIMATORS, 5)).mean(axis=-1)
    assert (np.abs(means) <= MARGIN).mean() > 0.4


@pytest.mark.parametrize(
    ("true", "sd"),
    [(0.0, 0.01), (0.0, 0.02), (0.5, 0.01), (0.8, 0.005), (1.2, 0.005), (2.0, 0.01), (2.0, 0.02), (4.0, 0.02)],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_number_of_seeds_named_decides(true, sd, sign):
    """``true``: difference in margins of one estimator; the others do not differ."""
    differences = np.zeros(ESTIMATORS)
    differences[3] = sign * true * MARGIN
    seeds = int(seeds_to_decide(differences[3], np.array(sd), MARGIN, ESTIMATORS))
    assert 3 <= seeds < 200
    decided = (simulated(differences, seeds, sd)[:, 3] != UNDECIDED).mean()
    assert decided >= 0.7
    if seeds > 8:
        fewer = (simulated(differences, seeds // 3, sd)[:, 3] != UNDECIDED).mean()
        assert fewer < 0.7, "a third of the seeds would not do"

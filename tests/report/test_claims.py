from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from qat_ste.experiment import verdict
from qat_ste.report.seeds import Summary, interval_of_mean, summarize
from qat_ste.report.sweep import claims
from qat_ste.report.sweep.claims import all_claims, counted, decide, orders, ratio_over_seeds
from qat_ste.report.sweep.folders import Run
from qat_ste.report.sweep.groups import group_runs


def runs(row: str, errors: dict[str, list[float | None]], equivalence: str = "remap") -> list[Run]:
    """One run for each seed; ``errors`` by counterpart, in the order of the seeds."""
    number = len(next(iter(errors.values())))
    return [
        Run(
            Path(f"{row}-{seed}"),
            {"train": {"seed": seed}, "row": row},
            {"experiment": "mnist_sgd", "row": row},
            {"reference": {}}
            | {
                name: {"weight_alignment_error": values[seed]} if values[seed] is not None else {}
                for name, values in errors.items()
            },
            equivalence,
            100,
            1.0,
            {"device": "cpu", "versions": {}, "cpu_count": None},
            {},
        )
        for seed in range(number)
    ]


def words(*all_runs: list[Run]) -> dict[tuple[str, str], str]:
    groups, _ = group_runs(run for by_seed in all_runs for run in by_seed)
    return {(claim.row, claim.kind): claim.word for claim in all_claims(groups)}


def students_quantile(freedom: int, probability: float) -> float:
    """Integrates Student's density in small steps."""
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    area, t, step = 0.5, 0.0, 1e-4
    while area < probability:
        middle = t + step / 2
        area += step * scale * (1 + middle * middle / freedom) ** (-(freedom + 1) / 2)
        t += step
    return t


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_against_students_density(n):
    generator = random.Random(n)
    values = [generator.gauss(1, 2) for _ in range(n)]
    mean = sum(values) / n
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    reach = students_quantile(n - 1, 0.975) * deviation / math.sqrt(n)
    assert interval_of_mean(values) == pytest.approx((mean, mean - reach, mean + reach), rel=1e-3)
    found = summarize([None, *values])
    assert (found.mean, found.sd, found.n) == (pytest.approx(mean), pytest.approx(deviation), n)


def test_summary_of_little():
    assert summarize([None]) is None
    assert summarize([0.3]).sd is None
    assert summarize([0.1] * 3) == Summary(0.1, 0.0, 3)


def test_interval_has_its_nominal_coverage():
    generator = random.Random(0)
    inside = 0
    for _ in range(2000):
        _, low, high = ratio_over_seeds([math.exp(generator.gauss(math.log(1.7), 0.3)) for _ in range(4)])
        inside += low <= 1.7 <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((1.2, 1.9), "holds"), ((1.2, 2.0), "holds"), ((1.2, 2.1), "inconclusive"), ((2.1, 3.0), "does not hold")],
)
def test_decision_about_an_upper_bound_and_its_mirror(interval, word):
    assert decide(*interval, "at most", 2.0) == word
    mirrored = [1 / end for end in reversed(interval)]
    assert decide(*mirrored, "at least", 0.5) == word
    assert decide(None, None, "at most", 2.0) == "inconclusive"


def test_below_one_excludes_one():
    assert decide(1.0, 1.0, "below", 1.0) == "does not hold"
    assert decide(0.5, 0.9, "below", 1.0) == "holds"
    assert decide(0.5, 1.0, "below", 1.0) == "inconclusive"


def test_bound_equals_that_of_the_verdict():
    assert claims.NEGLIGIBLE == verdict.NEGLIGIBLE


def test_claims_that_hold():
    default = runs(
        "default", {"ste": [0.05, 0.055, 0.052], "jitter": [0.04, 0.041, 0.042], "naive": [0.25, 0.26, 0.27]}
    )
    smaller = runs("scaledown_matched", {"ste": [0.02, 0.022, 0.021]})
    assert words(default, smaller) == {
        ("default", "close"): "holds",
        ("default", "far"): "holds",
        ("scaledown_matched", "closer"): "holds",
    }


def test_negative_control_claims_that_do_not_hold():
    default = runs("default", {"ste": [0.25, 0.26, 0.27], "jitter": [0.04, 0.041, 0.042], "naive": [0.26, 0.25, 0.27]})
    smaller = runs("scaledown", {"ste": [0.5, 0.52, 0.51]})
    assert set(words(default, smaller).values()) == {"does not hold"}


def test_inconclusive_claims():
    scattered = runs("default", {"ste": [0.02, 0.2, 0.06], "jitter": [0.04, 0.04, 0.04], "naive": [0.3, 0.2, 0.06]})
    assert set(words(scattered).values()) == {"inconclusive"}
    one_seed = runs("default", {"ste": [0.04], "jitter": [0.04], "naive": [0.4]})
    assert set(words(one_seed).values()) == {"inconclusive"}
    (claim, _) = all_claims(group_runs(one_seed)[0])
    assert (claim.value, claim.low, claim.n) == (1.0, None, 1)
    assert claim.note == "one run (seed 0); a test needs at least two seeds"


def test_ratios_are_paired_by_seed():
    """All errors of one seed are larger by one factor: their paired ratios have no spread."""
    paired = runs("default", {"ste": [0.05, 0.1, 0.2], "jitter": [0.04, 0.08, 0.16]})
    (claim,) = all_claims(group_runs(paired)[0])
    assert (claim.low, claim.high) == (pytest.approx(1.25), pytest.approx(1.25))
    assert claim.note == "all seeds have the same ratio"
    missing = runs("default", {"ste": [0.05, None, 0.2], "jitter": [0.04, 0.08, None]})
    (claim,) = all_claims(group_runs(missing)[0])
    assert claim.n == 1


def test_control_claim_only_with_adjustment():
    errors = {"ste": [0.05, 0.05], "jitter": [0.04, 0.05], "naive": [0.05, 0.05]}
    assert set(words(runs("default", errors, "keep"))) == {("default", "close")}
    assert set(words(runs("default", errors, "remap"))) == {("default", "close"), ("default", "far")}


def test_exactly_equal_runs():
    assert words(runs("default", {"ste": [0.0, 0.0], "jitter": [0.04, 0.05]})) == {("default", "close"): "holds"}
    assert words(runs("default", {"ste": [0.0, 0.1], "jitter": [0.04, 0.05]})) == {("default", "close"): "inconclusive"}
    assert words(runs("default", {"ste": [0.1, 0.1], "jitter": [0.0, 0.0]})) == {("default", "close"): "inconclusive"}


@pytest.mark.parametrize(
    ("ste", "naive", "order"),
    [
        (0.05, 0.3, "ste ≈ jitter < naive"),
        (0.01, 0.3, "ste < jitter < naive"),
        (0.01, 0.03, "ste < jitter; ste < naive"),
        (0.2, 0.9, "ste > jitter; ste < naive"),
        (0.2, 0.21, "ste > jitter; naive less than 2 × as far as ste"),
    ],
)
def test_order_in_words(ste, naive, order):
    group = runs("default", {"ste": [ste, ste * 1.01], "jitter": [0.04, 0.0401], "naive": [naive, naive * 1.01]})
    assert orders(all_claims(group_runs(group)[0])) == {"mnist_sgd": order}


def test_matrix_holds_and_the_headline_counts(matrix):
    found = matrix.findings.claims
    assert {(claim.setup, claim.row, claim.kind) for claim in found} == {
        *(("mnist_sgd", row, kind) for row in ("default", "bits_1", "bits_4") for kind in ("close", "far")),
        ("mnist_adam", "default", "close"),
        *(
            (setup, row, "closer")
            for setup in ("mnist_sgd", "mnist_adam")
            for row in ("scaledown", "scaledown_matched")
        ),
    }
    assert {claim.word for claim in found} == {"holds"}
    assert counted(found) == "All 11 claims hold."
    assert all(before.setup == after.setup or after.setup == "mnist_adam" for before, after in pairwise(found))
    far = next(claim for claim in found if claim.kind == "far")
    assert far.note == "the ranges over seeds do not overlap"


def test_headline_with_failed_inconclusive_and_no_claims(matrix):
    first = matrix.findings.claims[0]
    mixed = [replace(first, word=word) for word in ("holds", "holds", "does not hold", "inconclusive", "inconclusive")]
    assert counted(mixed) == "2 of 5 claims hold; 1 does not hold; 2 are inconclusive."
    assert counted([*mixed[:2], *mixed[3:]]) == "2 of 4 claims hold; 2 are inconclusive."
    assert counted(mixed[1:3]) == "1 of 2 claims holds; 1 does not hold."
    assert counted(mixed[2:]) == "0 of 3 claims hold; 1 does not hold; 2 are inconclusive."
    assert counted(mixed[:1]) == "The claim holds."
    assert counted(mixed[2:3]) == "The claim does not hold."
    assert counted(mixed[3:]) == "Both claims are inconclusive."
    assert counted([replace(first, word="cannot say")]) == "The claim is inconclusive.", "in a summary of version 0.1.0"
    assert counted([]) == "No claim can be tested: no run has both counterparts, ste and jitter."

from __future__ import annotations

import re

import pytest

from qat_ste.experiment.verdict import decide, equivalent_jitter


def test_ratios_and_equivalent_jitter_from_one_run():
    verdict = decide({"ste": 0.06, "naive": 0.24, "jitter": 0.02}, "remap")
    assert verdict.ste_over_jitter == pytest.approx(3)
    assert verdict.naive_over_jitter == pytest.approx(12)
    assert verdict.equivalent_lr_jitter == pytest.approx(3)


def test_equivalent_jitter_is_interpolated_between_runs():
    jitters = {1.0: 0.02, 10.0: 0.08, 100.0: 0.32}
    assert equivalent_jitter(0.08, jitters) == pytest.approx(10)
    assert equivalent_jitter(0.04, jitters) == pytest.approx(10**0.5)
    assert equivalent_jitter(0.01, jitters) == pytest.approx(0.5)
    assert equivalent_jitter(0.64, jitters) == pytest.approx(200)
    assert decide({"ste": 0.16, "jitter_10": 0.08}, "keep").equivalent_lr_jitter == pytest.approx(20)


def test_more_jitter_runs_sharpen_the_equivalent_and_do_not_turn_the_verdict():
    one = decide({"ste": 0.07, "naive": 0.25, "jitter": 0.023}, "remap")
    two = decide({"ste": 0.07, "naive": 0.25, "jitter": 0.023, "jitter_10": 0.035}, "remap")
    assert one.equivalent_lr_jitter == pytest.approx(3.04, abs=0.01)
    assert two.equivalent_lr_jitter == pytest.approx(20)
    assert one.ste_over_jitter == two.ste_over_jitter
    assert one.statement.split(":")[0] == two.statement.split(":")[0]
    assert "(like a change of 20 %)" in two.statement
    assert "like a change" not in one.statement, "one run says nothing of how the distance grows"


@pytest.mark.parametrize(
    ("errors", "equivalence", "words"),
    [
        ({"ste": 0.0, "jitter": 0.02}, "remap", "did not matter at all: the STE run is the same run, bit for bit"),
        ({"ste": 0.03, "naive": 0.25, "jitter": 0.02}, "remap",
         r"did not matter: the STE with adjusted .* ended 1.5 times as far from the reference as a 1 % higher learning rate "
         r"does; swapped in without adjustment, 12 times as far\."),
        ({"ste": 0.07, "naive": 0.25, "jitter": 0.02}, "remap", "hardly mattered: .* 3.5 times as far"),
        ({"ste": 0.12, "naive": 1.3, "jitter": 0.02}, "remap", "hardly mattered: .* 6 times as far"),
        ({"ste": 0.12, "naive": 0.5, "jitter": 0.02}, "remap", "The estimator mattered: .* 6 times as far"),
        ({"ste": 0.06, "naive": 0.05, "jitter": 0.02}, "remap",
         r"The claim does not hold here: .* hardly closer than the STE swapped in without adjustment \(2.5 times as far\)"),
        ({"ste": 0.73, "naive": 0.95, "jitter": 0.74}, "remap",
         r"did not matter, nor did the adjustment: .* 0.99 times as far .* adjustment 1.3 times as far"),
        ({"ste": 0.8, "naive": 1.5, "jitter": 0.74}, "remap", "The claim does not hold here: .* hardly closer"),
        ({"ste": 0.2, "naive": 0.2, "jitter": 0.02}, "keep", "The estimator mattered: the STE with nothing adjusted .* 10 times"),
        ({"ste": 0.02, "naive": 0.02, "jitter": 0.02}, "keep", "did not matter: the STE with nothing adjusted .* 1 times"),
        ({"ste": 0.0, "naive": 0.0, "jitter": 0.0}, "exact", "did not matter at all: the STE run is the same run, bit for bit"),
        ({"ste": 0.02, "jitter_5": 0.04}, "exact", "0.5 times as far from the reference as a 5 % higher learning rate"),
        ({"ste": 0.2, "jitter": 0.02}, "none", "for which no adjustment is known here"),
        ({"naive": 0.2, "jitter": 0.02}, "remap", "No verdict: the comparison has no counterpart 'ste'"),
        ({"ste": 0.2}, "remap", "No verdict: without a 'jitter' run"),
        ({"ste": None, "jitter": None}, "remap", "No verdict"),
    ],
)  # fmt: skip
def test_statement(errors, equivalence, words):
    statement = decide(errors, equivalence).statement
    assert re.search(words, statement), statement
    assert "\n" not in statement


@pytest.mark.parametrize(("equivalence", "naive"), [("remap", 0.06), ("remap", 0.5), ("keep", 0.06)])
def test_where_the_theorem_says_nothing_the_distance_alone_speaks(equivalence, naive):
    errors = {"ste": 0.06, "naive": naive, "jitter": 0.02}
    statement = decide(errors, equivalence, covered=False).statement
    assert re.search(r"hardly mattered: .* 3 times as far .*\. The theorem does not cover this estimator; ", statement)
    assert "does not hold" not in statement
    assert "The theorem does not cover" not in decide(errors, equivalence).statement
    assert "The theorem" not in decide({"ste": 0.0, "jitter": 0.02}, "exact", covered=False).statement

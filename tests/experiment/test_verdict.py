from __future__ import annotations

import re

import pytest

from qat_ste.verdict import decide, equivalent_jitter


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


@pytest.mark.parametrize(
    ("errors", "equivalence", "words"),
    [
        ({"ste": 0.0, "jitter": 0.02}, "remap", "did not matter at all: the STE run is the same run, bit for bit"),
        ({"ste": 0.03, "naive": 0.25, "jitter": 0.02}, "remap",
         r"did not matter: the STE with adjusted .* as far as a 1.5 % change of learning rate would\. Swapped in without "
         r"adjustment it ends 8.3 times as far \(12 %\)"),
        ({"ste": 0.07, "naive": 0.25, "jitter": 0.02}, "remap", "hardly mattered: .* a 3.5 % change"),
        ({"ste": 0.12, "naive": 0.5, "jitter": 0.02}, "remap", r"The estimator mattered: .* a 6 % change"),
        ({"ste": 0.06, "naive": 0.05, "jitter": 0.02}, "remap",
         r"The claim does not hold here: .* hardly closer than the STE swapped in as it is \(2.5 %\)"),
        ({"ste": 0.2, "naive": 0.2, "jitter": 0.02}, "keep", "The estimator mattered: the STE with nothing adjusted .* 10 %"),
        ({"ste": 0.02, "naive": 0.02, "jitter": 0.02}, "keep", "did not matter: the STE with nothing adjusted .* 1 %"),
        ({"ste": 0.2, "jitter": 0.02}, "none", "for which no adjustment is known with this optimizer"),
        ({"naive": 0.2, "jitter": 0.02}, "remap", "No verdict: the comparison has no counterpart 'ste'"),
        ({"ste": 0.2}, "remap", "No verdict: without a 'jitter' run"),
        ({"ste": None, "jitter": None}, "remap", "No verdict"),
    ],
)  # fmt: skip
def test_statement(errors, equivalence, words):
    verdict = decide(errors, equivalence)
    assert re.search(words, verdict.statement), verdict.statement
    assert "\n" not in verdict.statement

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from qat_ste import Training
from qat_ste.estimators import Tanh
from qat_ste.experiment.breaking_changes import breaking_changes
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.verdict import decide, equivalent_jitter
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.optimizers import Muon, SignSGD
from tests.arguments import WEIGHTS
from tests.experiment.tiny import network


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


def test_more_jitter_runs_refine_the_equivalent_change_and_keep_the_outcome():
    one = decide({"ste": 0.07, "naive": 0.25, "jitter": 0.023}, "remap")
    two = decide({"ste": 0.07, "naive": 0.25, "jitter": 0.023, "jitter_10": 0.035}, "remap")
    assert one.equivalent_lr_jitter == pytest.approx(3.04, abs=0.01)
    assert two.equivalent_lr_jitter == pytest.approx(20)
    assert one.ste_over_jitter == two.ste_over_jitter
    assert one.statement.split(":")[0] == two.statement.split(":")[0]
    assert one.outcome == two.outcome == "hardly mattered"
    assert "(like a change of 20 %)" in two.statement
    assert "like a change" not in one.statement, "one run does not show how the distance grows"


@pytest.mark.parametrize(
    ("errors", "equivalence", "outcome", "words"),
    [
        ({"ste": 0.0, "jitter": 0.02}, "remap", "did not matter",
         "did not matter at all: the STE run is the same run, bit for bit"),
        ({"ste": 0.03, "naive": 0.25, "jitter": 0.02}, "remap", "did not matter",
         r"did not matter: the STE with adjusted learning rate and initial weights ended 1.5 times as far from the reference "
         r"as a 1 % higher learning rate does; the STE swapped in without adjustment 12 times as far\.$"),
        ({"ste": 0.07, "naive": 0.25, "jitter": 0.02}, "remap", "hardly mattered", "hardly mattered: .* 3.5 times as far"),
        ({"ste": 0.12, "naive": 1.3, "jitter": 0.02}, "remap", "hardly mattered", "hardly mattered: .* 6 times as far"),
        ({"ste": 0.12, "naive": 0.5, "jitter": 0.02}, "remap", "mattered", "the estimator mattered: .* 6 times as far"),
        ({"ste": 0.06, "naive": 0.05, "jitter": 0.02}, "remap", "claim fails",
         r"the paper's claim fails: .* 3 times as far .*, farther than the STE swapped in without adjustment "
         r"\(2.5 times as far\)\. A smaller learning rate may help\.$"),
        ({"ste": 0.73, "naive": 0.95, "jitter": 0.74}, "remap", "too sensitive",
         r"training is too sensitive to tell the two apart: .* 0.99 times as far .*, the STE swapped in without adjustment "
         r"1.3 times as far\. A smaller learning rate may tell them apart\.$"),
        ({"ste": 0.8, "naive": 1.5, "jitter": 0.74}, "remap", "claim fails",
         "the paper's claim fails: .* 1.1 times as far .*, more than half as far as the STE swapped in without adjustment"),
        ({"ste": 0.2, "naive": 0.2, "jitter": 0.02}, "keep", "mattered",
         r"the estimator mattered: the STE with nothing adjusted ended 10 times as far .* does\.$"),
        ({"ste": 0.02, "naive": 0.02, "jitter": 0.02}, "keep", "did not matter",
         "did not matter: the STE with nothing adjusted .* 1 times"),
        ({"ste": 0.0, "naive": 0.0, "jitter": 0.0}, "exact", "did not matter",
         "did not matter at all: the STE run is the same run, bit for bit"),
        ({"ste": 0.02, "jitter_5": 0.04}, "exact", "did not matter",
         "0.5 times as far from the reference as a 5 % higher learning rate"),
        ({"ste": 0.2, "jitter": 0.02}, "none", "mattered", "for which no adjustment is known here"),
        ({"naive": 0.2, "jitter": 0.02}, "remap", "no verdict", "No verdict: the comparison has no counterpart 'ste'"),
        ({"ste": 0.2}, "remap", "no verdict",
         "No verdict: without a 'jitter' run the alignment error 0.2 cannot be judged."),
        ({"ste": None, "jitter": None}, "remap", "no verdict", "No verdict"),
    ],
)  # fmt: skip
def test_statement(errors, equivalence, outcome, words):
    verdict = decide(errors, equivalence)
    assert verdict.outcome == outcome
    assert re.search(words, verdict.statement), verdict.statement
    assert "\n" not in verdict.statement
    assert verdict.statement.startswith("No verdict: " if outcome == "no verdict" else "In this run ")
    assert decide(errors, equivalence, seed=42).statement == verdict.statement.replace(
        "In this run", "In this run (seed 42)"
    )


@pytest.mark.parametrize(
    ("ste", "words"),
    [(0.051, "farther than"), (0.049, "more than half as far as"), (0.026, "more than half as far as")],
)
def test_a_failed_claim_says_which_of_the_two_is_farther(ste, words):
    statement = decide({"ste": ste, "naive": 0.05, "jitter": 0.02}, "remap").statement
    assert f", {words} the STE swapped in without adjustment (2.5 times as far)" in statement


MEND = "Use train.l2=0.025."
DECAY, CLIPPING = "weight decay (optimizer.weight_decay=0.05)", "gradient clipping (train.clip_norm=1)"


@pytest.mark.parametrize(
    ("errors", "equivalence"),
    [
        ({"ste": 0.36, "naive": 0.4, "jitter": 0.02}, "remap"),
        ({"ste": 0.15, "naive": 0.4, "jitter": 0.02}, "remap"),
        ({"ste": 0.2, "naive": 0.2, "jitter": 0.02}, "keep"),
    ],
)
def test_a_broken_equivalence_is_named_where_the_ste_is_far(errors, equivalence):
    plain = decide(errors, equivalence)
    one = decide(errors, equivalence, breaks={DECAY: MEND})
    assert one.outcome == plain.outcome
    assert (
        "Weight decay (optimizer.weight_decay=0.05) breaks the equivalence: a distance remains that no smaller learning "
        f"rate removes. {MEND}" in one.statement
    )
    assert "may help" not in one.statement
    two = decide(errors, equivalence, breaks={DECAY: MEND, CLIPPING: MEND, "a third": "Leave it."})
    assert f"W{DECAY[1:]} and {CLIPPING} and a third break the equivalence" in two.statement
    assert two.statement.endswith(f"removes. {MEND} Leave it.")
    assert "equivalence" not in plain.statement


@pytest.mark.parametrize("ste", [0.0, 0.03, 0.07])
def test_a_broken_equivalence_is_not_blamed_where_the_ste_is_near(ste):
    errors = {"ste": ste, "naive": 0.25, "jitter": 0.02}
    assert decide(errors, "remap", breaks={DECAY: MEND}) == decide(errors, "remap")


@pytest.mark.parametrize(
    ("steps", "warning"),
    [
        (1, " So short a run (1 step) says little."),
        (19, " So short a run (19 steps) says little."),
        (20, ""),
        (None, ""),
    ],
)
@pytest.mark.parametrize("ste", [0.0, 0.03, None])
def test_few_steps_say_little(ste, steps, warning):
    errors = {"ste": ste, "naive": 0.25, "jitter": 0.02}
    plain = decide(errors, "remap")
    assert decide(errors, "remap", steps=steps) == replace(plain, statement=plain.statement + warning)


@pytest.mark.parametrize(("equivalence", "naive"), [("remap", 0.06), ("remap", 0.5), ("keep", 0.06)])
def test_only_the_distance_counts_where_the_theorem_does_not_hold(equivalence, naive):
    errors = {"ste": 0.06, "naive": naive, "jitter": 0.02}
    verdict = decide(errors, equivalence, covered=False)
    assert verdict.outcome == "hardly mattered"
    assert re.search(
        r"hardly mattered: .* 3 times as far .*\. The theorem does not cover this estimator; ", verdict.statement
    )
    assert "claim fails" not in verdict.statement
    assert "The theorem does not cover" not in decide(errors, equivalence).statement
    assert "The theorem" not in decide({"ste": 0.0, "jitter": 0.02}, "exact", covered=False).statement


L2 = "the counterpart 'mirrored' decays as the reference does"


@pytest.mark.parametrize(
    ("changes", "setting", "remedy"),
    [
        ({"optimizer": partial(torch.optim.SGD, weight_decay=0.05)}, "weight decay (optimizer.weight_decay=0.05)",
         f"Use train.l2=0.025 in its place; then {L2}."),
        ({"optimizer": partial(torch.optim.Adam, weight_decay=0.05)}, "weight decay (optimizer.weight_decay=0.05)",
         f"Use train.l2=0.025 in its place; then {L2}."),
        ({"optimizer": torch.optim.SGD, "weight_decay": 0.05}, "weight decay (train.weight_decay=0.05)", f"T{L2[1:]}."),
        ({"optimizer": torch.optim.Adam, "l2": 0.05}, "the L2 penalty (train.l2=0.05)", f"T{L2[1:]}."),
        ({"optimizer": torch.optim.SGD, "clip_norm": 0.1}, "gradient clipping (train.clip_norm=0.1)",
         "Use train.clip_at=quantized; or the counterpart 'mirrored', which is clipped as the reference is."),
        ({"optimizer": Muon}, "an optimizer without a known adjustment (Muon)", "SGD and Adam have one."),
    ],
)  # fmt: skip
def test_what_breaks_the_equivalence_of_a_run_is_named_with_its_remedy(changes, setting, remedy):
    assert breaking_changes(cohort(**changes)) == {setting: remedy}


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": torch.optim.SGD},
        {"optimizer": partial(torch.optim.AdamW, weight_decay=0.1)},
        {"optimizer": torch.optim.Adam, "weight_decay": 0.05},
        {"optimizer": torch.optim.SGD, "clip_norm": 0.1, "clip_at": "quantized"},
        {"optimizer": SignSGD, "clip_norm": 0.1},
    ],
)
def test_what_leaves_the_equivalence_whole_is_not_named(changes):
    assert breaking_changes(cohort(**changes)) == {}


def cohort(optimizer, **training):
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    return Cohort(model, Tanh(5.5), optimizer, 0.1, ["ste"], Training(steps=1, **training)).make_members()

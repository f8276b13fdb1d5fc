"""Wrong values made from every key of the configuration: refused in one line before any training, or accepted."""

from __future__ import annotations

import random

import pytest

from scripts.campaign import wrong_values
from scripts.campaign.calls import Done
from scripts.campaign.inputs import WrongValues, description_faults, training_faults
from scripts.campaign.wrong_values import Input

GIVEN = Input((), "train.steps", "-1")


def test_a_sample_of_wrong_values(tmp_path):
    outcome = WrongValues(count=12, trained=1).happen(tmp_path, random.Random(8))
    assert not outcome.broken
    assert outcome.counts["refused"] + outcome.counts["accepted"] == 12
    assert outcome.counts["refused"] >= 4
    assert not outcome.counts["trainings begun"] + outcome.counts["tracebacks"] + outcome.counts["hangs"]


def test_values_are_made_from_every_key():
    made = [
        given for group in wrong_values.groups() for given in wrong_values.inputs(group, wrong_values.choices(group)[0])
    ]
    keys = {given.key for given in made}
    assert {
        "train.steps",
        "quantizer.levels",
        "paths.output",
        "counterparts",
        "estimator.s",
        "dataset._target_",
    } <= keys
    assert len(made) > 1000


@pytest.mark.parametrize(
    ("done", "fault"),
    [
        (Done(2, "", "qat-run: train.steps=-1: must be 1; for example train.steps=1\n", 0), None),
        (Done(0, "qat-run  # 4 members x 1 steps of 64\n", "", 0), None),
        (Done(0, "", "", 0), "no run described"),
        (Done(1, "", "Traceback (most recent call last):\nOops\n", 0), "traceback: Oops"),
        (Done(2, "", "qat-run: train.epochs=-1: must be 1\n", 0), "names another key"),
        (Done(2, "", "qat-run: train.steps=-1: Error merging\n", 0), "does not say what is allowed"),
        (Done(2, "", f"qat-run: train.steps={'x' * 2000}: must be 1\n", 0), "floods the terminal"),
        (Done(2, "", "qat-run: train.steps=-1: must be 1\nagain\n", 0), "2 lines"),
        (Done(2, "", "qat-run: train.steps=-1: must be 1\n", 0, steps=3), "refused after 3 steps"),
    ],
)
def test_what_does_not_hold_is_seen(done, fault):
    found = description_faults(GIVEN, done)
    assert [fault in one for one in found] == [True] if fault else not found


def test_a_training_that_leaves_nothing_is_seen(tmp_path):
    assert training_faults(GIVEN, Done(0, "", "", 0), tmp_path) == ["trained, but there is no results.json"]
    assert "exit code 1 with 0 lines" in training_faults(GIVEN, Done(1, "", "", 0), tmp_path)[0]


@pytest.mark.slow
def test_many_wrong_values(tmp_path):
    assert not WrongValues(count=300).happen(tmp_path, random.Random(9)).broken

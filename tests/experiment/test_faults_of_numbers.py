"""The campaign's faults of numbers: what they find amiss, and that they find nothing."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch.nn.functional as F

from scripts.campaign.numbers import NUMBERS, Odd, Refused, Spoiled, Spoiling
from scripts.campaign.slow_training import compared


def happened(fault, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    return fault.happen(tmp_path, random.Random(5))


def test_a_network_beside_its_twin_and_a_slow_training(tmp_path):
    assert happened(Odd("", "transposed", "plain"), tmp_path).broken == []
    assert happened(Odd("", "transposed", "plain"), tmp_path).differing == 0
    assert happened(Odd("", "zeros", "plain"), tmp_path).differing > 0, "control: not its twin"


def test_numbers_beside_others_than_theirs_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.campaign.slow_training.LR", 0.021)
    monkeypatch.setattr("scripts.campaign.numbers.compared", partial(compared, lr=0.02))
    broken = happened(Odd("", "plain"), tmp_path).broken
    assert "losses of reference are not those of a slow training" in broken
    assert any(breach.startswith("alignment error") for breach in broken)


def test_what_is_accepted_or_refused_in_other_words_is_found(tmp_path):
    assert happened(Refused("", "anything"), tmp_path).broken[0] == "was accepted"
    assert "no line with 'elsewhere'" in happened(Refused("", "elsewhere", "nan"), tmp_path).broken[0]
    assert happened(Refused("", "0.weight holds NaN", "nan"), tmp_path).broken == []


def test_a_fault_that_nobody_notices_is_found(tmp_path, monkeypatch):
    fault = Spoiled("", gradient=True, last=True)
    assert happened(fault, tmp_path / "a").broken == []
    monkeypatch.setattr(Spoiling, "__call__", lambda _, *given: F.cross_entropy(*given))
    assert "went unnoticed" in happened(fault, tmp_path / "b").broken[0]


@pytest.mark.slow
@pytest.mark.parametrize("fault", NUMBERS, ids=lambda fault: fault.name)
def test_every_fault_of_numbers(fault, tmp_path):
    outcome = happened(fault, tmp_path)
    assert (outcome.broken, outcome.lost_rows, outcome.differing) == ([], 0, 0)

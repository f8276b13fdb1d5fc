"""δ: how far weights can move within Adam's memory."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch

from qat_ste.optimizers import Lion
from tests.experiment.tiny import SGD, run


def adam(beta_2):
    return partial(torch.optim.Adam, betas=(0.9, beta_2))


def test_it_is_the_rate_times_the_memory_over_the_step_of_the_grid():
    found = run(optimizer=adam(0.95), lr=1e-3, steps=30, include=["Conv2d"], scale=0.6)
    assert found.movement_in_memory == {"0.weight": pytest.approx(1e-3 * 20 / 0.4)}  # 2 bits: 3 steps over 1.2
    assert "δ" not in found.verdict.statement


def test_no_memory_is_longer_than_the_run():
    found = run(optimizer=adam(0.999), lr=1e-3, steps=30, include=["Conv2d"], scale=0.6)
    assert found.movement_in_memory == {"0.weight": pytest.approx(1e-3 * 30 / 0.4)}


def test_where_it_is_large_the_start_and_the_verdict_say_so(caplog):
    with caplog.at_level(logging.INFO):
        found = run(optimizer=adam(0.999), lr=1e-2, steps=30, include=["Conv2d"], scale=0.6)
    (warning,) = [record.getMessage() for record in caplog.records if "δ" in record.getMessage()]
    assert warning.startswith("δ = 0.75 (0.weight): weights can cross")
    assert warning in found.verdict.statement


@pytest.mark.parametrize("optimizer", [SGD, Lion])
def test_other_optimizers_have_none(optimizer):
    assert run(optimizer=optimizer, lr=1e-3, steps=3).movement_in_memory == {}

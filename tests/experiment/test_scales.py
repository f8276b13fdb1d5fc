"""Comparisons with scales taken from the initial weights."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from tests.experiment.tiny import network, run


@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
@pytest.mark.parametrize("scale", ["initial_absmax", "initial_percentile_95", "initial_mse", 0.4])
def test_the_counterpart_starts_on_the_levels_of_the_reference(scale, granularity):
    found = run(scale=scale, granularity=granularity, include=["Conv2d"], lr=0.002, steps=20,
                counterparts=["ste", "naive", "replica"])  # fmt: skip
    assert found.counterparts["ste"].initial_quantized_agreement == 1
    assert found.counterparts["ste"].initial_alignment_error == 0
    assert found.counterparts["replica"].weight_alignment_error == 0
    assert 0 < found.counterparts["ste"].weight_alignment_error < found.counterparts["naive"].weight_alignment_error


def scaled_network():
    """Weights up to twice the range of He, which is half of them."""
    model = network()
    with torch.no_grad():
        model[0].weight.uniform_(-1, 1).mul_(2 * (6 / 9) ** 0.5)
    return model


def test_many_weights_outside_the_range_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        run(build_model=scaled_network, steps=1)
    (warning,) = [record.getMessage() for record in caplog.records if "outside the range" in record.getMessage()]
    assert re.match(r"\d+ % of the quantized weights", warning)
    assert "most in 0.weight" in warning and "scale=initial_absmax" in warning


def test_weights_inside_the_range_are_not(caplog):
    with caplog.at_level(logging.WARNING):
        run(steps=1)
        run(build_model=scaled_network, scale="initial_absmax", steps=1)
    assert not [record for record in caplog.records if "outside the range" in record.getMessage()]


def test_a_scale_that_does_not_suit_a_tensor_names_it():
    with pytest.raises(ValueError, match=r"granularity must be .*divisor of 9.* \(0.weight\), got 4"):
        run(scale="initial_absmax", granularity=4)
    with pytest.raises(ValueError, match=r"scale .*zeros alone \(0.weight\)"):
        run(scale="initial_absmax", build_model=lambda: nn.Sequential(_zeros(network()[0]), *network()[1:]))


def _zeros(module):
    nn.init.zeros_(module.weight)
    return module

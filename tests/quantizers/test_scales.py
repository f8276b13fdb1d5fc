"""Scales taken from the initial weights, against slow loops over groups."""

from __future__ import annotations

import pytest
import torch

from qat_ste.base.errors import ArgumentError
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.scales import Grouping, he_uniform_bound, scale_of


def test_range_is_the_he_uniform_bound():
    assert he_uniform_bound(torch.empty(64, 32, 3, 3)) == pytest.approx((6 / 288) ** 0.5)
    assert he_uniform_bound(torch.empty(10, 128)) == pytest.approx((6 / 128) ** 0.5)
    assert he_uniform_bound(torch.empty(64)) == pytest.approx((6 / 64) ** 0.5)


@pytest.fixture
def w():
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7).view(-1, 1, 1, 1)


def groups(w, granularity):
    """The groups as lists of numbers, in the order of the weights."""
    per_channel = [channel.flatten().tolist() for channel in w]
    if granularity == "tensor":
        return [[value for channel in per_channel for value in channel]]
    if granularity == "channel":
        return per_channel
    return [
        channel[start : start + granularity] for channel in per_channel for start in range(0, len(channel), granularity)
    ]


def error(values, scale, levels):
    """Σ(q(w) - w)² by the definition: the nearest of the scaled levels."""
    return sum(min((scale * level - value) ** 2 for level in levels) for value in values)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 12, 36])
@pytest.mark.parametrize("name", ["initial_absmax", "initial_percentile_90", "initial_percentile_100", "initial_mse"])
def test_scale_of_each_group(w, name, granularity):
    rounding = make_quantizer(1.0, bits=3)
    scale = scale_of(name).of(w, Grouping.of(granularity, w), rounding)
    found = torch.as_tensor(scale).expand_as(w)
    for values, scales in zip(groups(w, granularity), groups(found, granularity), strict=True):
        assert len(set(scales)) == 1
        ordered = sorted(map(abs, values))
        if name == "initial_percentile_90":
            assert sum(value <= scales[0] for value in ordered) == -(-9 * len(ordered) // 10)
        elif name == "initial_mse":
            levels = rounding.levels.double().tolist()
            tried = [error(values, ordered[-1] * k / 100, levels) for k in range(1, 101)]
            assert error(values, scales[0], levels) == pytest.approx(min(tried), rel=1e-5)
            assert min(tried) < tried[-1], "the largest |w| is not the best"
        else:
            assert scales[0] == ordered[-1]
    assert isinstance(scale, float) is (granularity == "tensor")


def test_a_number_and_he_are_of_the_whole_tensor(w):
    assert scale_of(0.25) == 0.25
    assert scale_of("he").of(w, Grouping.of("channel", w), make_quantizer(1.0)) == he_uniform_bound(w)


def test_a_bias_is_one_group():
    bias = torch.randn(5)
    for granularity in ("channel", 2):
        assert (
            scale_of("initial_absmax").of(bias, Grouping.of(granularity, bias), make_quantizer(1.0)) == bias.abs().max()
        )


def test_a_group_that_does_not_divide_is_refused(w):
    with pytest.raises(ArgumentError, match="a divisor of 36, the weights of a channel, as 6, got 7"):
        Grouping.of(7, w)


def test_a_channel_of_zeros_is_named(w):
    w[3] = 0
    with pytest.raises(ArgumentError, match="group 3 has zeros alone"):
        scale_of("initial_absmax").of(w, Grouping.of("channel", w), make_quantizer(1.0))


@pytest.mark.parametrize("scale", ["absmin", "initial_percentile_0", "initial_percentile_101", "initial_percentile_x", 0,
                                   -1.0, None, [1]])  # fmt: skip
def test_other_scales_are_refused(scale):
    with pytest.raises(ArgumentError, match="scale must be a number from 1e-06 up to 1e\\+06, he, initial_absmax"):
        scale_of(scale)

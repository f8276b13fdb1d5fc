"""The quantizer with equally spaced levels: levels, rounding, offsets, cells, saturation, errors."""

from __future__ import annotations

import math

import pytest
import torch

from qat_ste import UniformQuantizer
from qat_ste.base.errors import ArgumentError
from tests.theory import slow


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_levels_thresholds_and_rounding_follow_the_paper(bits):
    quantizer = UniformQuantizer(bits, 0.144)
    in_float64 = UniformQuantizer(bits, torch.tensor(0.144, dtype=torch.float64))
    assert in_float64.levels.tolist() == pytest.approx(slow.levels(bits, 0.144), abs=1e-15)
    assert in_float64.thresholds.tolist() == pytest.approx(slow.thresholds(bits, 0.144), abs=1e-15)
    assert 0.0 in in_float64.thresholds.tolist()
    assert quantizer.step == pytest.approx(0.288 / (2**bits - 1))
    w = torch.rand(500, dtype=torch.float64) * 0.5 - 0.25
    assert in_float64(w).tolist() == pytest.approx([slow.quantize(x, bits, 0.144) for x in w.tolist()], abs=1e-15)


def test_results_are_levels_bit_for_bit():
    for max_ in (0.144, 0.3, 1.0, math.pi):
        quantizer = UniformQuantizer(4, max_)
        quantized = quantizer(torch.randn(10_000) * max_)
        assert torch.isin(quantized, quantizer.levels).all()
        assert torch.equal(quantizer(quantized), quantized)
        assert torch.equal(quantizer.levels, -quantizer.levels.flip(0))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_on_a_threshold_is_rounded_up_and_the_next_one_below_down(bits, dtype):
    quantizer = UniformQuantizer(bits, torch.tensor(0.1, dtype=dtype))
    thresholds = quantizer.thresholds
    upper = torch.arange(1, 2**bits, dtype=dtype)
    assert torch.equal(quantizer.index(thresholds), upper)
    assert torch.equal(quantizer.index(torch.nextafter(thresholds, torch.tensor(-1.0, dtype=dtype))), upper - 1)


def test_infinite_weights_are_clipped_and_nan_stays_nan():
    quantizer = UniformQuantizer(2, 1.0)
    assert quantizer(torch.tensor([-math.inf, math.inf])).tolist() == [-1.0, 1.0]
    assert quantizer(torch.tensor([math.nan])).isnan().all()


def test_per_channel_equals_one_quantizer_per_channel():
    ranges = torch.tensor([0.1, 0.5, 2.0])
    w = torch.randn(3, 4, 5)
    per_channel = UniformQuantizer(3, ranges.reshape(3, 1, 1))
    for channel in range(3):
        single = UniformQuantizer(3, ranges[channel])
        assert torch.equal(per_channel(w)[channel], single(w[channel]))
        assert torch.equal(per_channel.offset(w)[channel], single.offset(w[channel]))
        assert torch.equal(per_channel.alive(w)[channel], single.alive(w[channel]))
    assert per_channel.levels.shape == (8, 3, 1, 1)


def test_offset_is_the_distance_from_the_nearest_threshold_in_step_sizes():
    quantizer = UniformQuantizer(2, torch.tensor(0.3, dtype=torch.float64))
    w = torch.rand(300, dtype=torch.float64) * 0.6 - 0.3
    expected = [(x - slow.nearest_threshold(x, 2, 0.3)) / 0.2 for x in w.tolist()]
    assert quantizer.offset(w).tolist() == pytest.approx(expected, abs=1e-12)


def test_cell_contains_exactly_the_weights_of_one_level():
    quantizer = UniformQuantizer(2, 0.3)
    w = torch.randn(1000) * 0.3
    lowest, highest = quantizer.cell(w)
    assert torch.equal(quantizer.index(lowest), quantizer.index(w))
    assert torch.equal(quantizer.index(highest), quantizer.index(w))
    assert (highest[quantizer.index(w) == 3] == math.inf).all()
    assert (lowest[quantizer.index(w) == 0] == -math.inf).all()
    below = torch.nextafter(lowest, torch.tensor(-math.inf))[torch.isfinite(lowest)]
    assert torch.equal(quantizer.index(below), quantizer.index(w)[torch.isfinite(lowest)] - 1)


@pytest.mark.parametrize("max_", [0.144, 0.1, 1 / 3, torch.tensor([0.144])])
def test_which_weights_get_a_gradient(max_):
    edge = float(max_)
    beyond = edge * (1 + 1 / 3)
    w = torch.tensor([edge, edge * 1.0001, beyond * 0.9999, beyond * 1.0001, 10.0])
    expected = {"range": [1, 0, 0, 0, 0], "bin": [1, 1, 1, 0, 0], "none": [1, 1, 1, 1, 1]}
    for saturation, alive in expected.items():
        quantizer = UniformQuantizer(2, max_, saturation)
        assert quantizer.alive(w).int().tolist() == alive
        assert quantizer.alive(-w).int().tolist() == alive
        assert quantizer.alive(quantizer.levels.reshape(-1)).all(), "the outermost levels must not freeze"
        assert quantizer.saturated(w).int().tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0), "bits must be a whole number from 1 to 16, got 0"),
        ((2.0, 1.0), "bits must be a whole number from 1 to 16, got 2.0"),
        ((True, 1.0), "bits must be a whole number from 1 to 16, got True"),
        ((2, 0.0), "max must be a positive finite number, got 0.0"),
        ((2, math.nan), "max must be a positive finite number, got nan"),
        ((2, torch.tensor([1.0, -1.0])), "max must be positive and finite for every channel, got tensor([ 1., -1.])"),
        ((2, 1.0, "clamp"), "saturation must be one of range, bin, none, got 'clamp'"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ArgumentError) as error:
        UniformQuantizer(*arguments)
    assert str(error.value) == message


def test_rejects_half_precision_latent_weights():
    with pytest.raises(ArgumentError) as error:
        UniformQuantizer(2, 1.0)(torch.zeros(3, dtype=torch.bfloat16))
    assert str(error.value) == (
        "latent weights must be float32 or float64 (use autocast for lower precision), got torch.bfloat16"
    )

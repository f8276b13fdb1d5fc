"""Quantizers on any levels: the named grids, rounding, and the theorem on them."""

from __future__ import annotations

import math
from itertools import product

import mpmath
import pytest
import torch

from qat_ste import GridQuantizer, Quantization, SteEquivalent, UniformQuantizer, estimators, quantize_weights
from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Acos, Estimator, Power, Ste, Tanh
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from qat_ste.quantizers.grids import GRIDS, make_quantizer
from tests.experiment.tiny import network
from tests.floats import around

UNEVEN = (-1.0, -0.31, 0.05, 0.4, 1.0)
LEVELS = {**GRIDS, "five uneven": UNEVEN}
SCALES = {"per tensor": 0.144, "per channel": torch.tensor([0.05, 0.144, 1.7]).reshape(3, 1)}
EVEN = [
    name
    for name in estimators.__all__
    if isinstance(getattr(estimators, name), type)
    and issubclass(kind := getattr(estimators, name), Estimator)
    and kind is not Estimator
    and not issubclass(kind, estimators.whole_line.WholeLine)
    and name != "Acos"
]


def in_float64(levels, saturation="range") -> GridQuantizer:
    return GridQuantizer(levels, torch.tensor(0.144, dtype=torch.float64), saturation)


def test_fp4_has_two_exponent_bits_and_one_mantissa_bit():
    def value(sign: int, exponent: int, mantissa: int) -> float:
        magnitude = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
        return (-1) ** sign * magnitude

    assert sorted({value(*bits) for bits in product((0, 1), range(4), (0, 1))}) == list(GRIDS["fp4_e2m1"])


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    def quantile(p: float) -> float:
        return float(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1))

    end = 0.9677083  # the mean of 1 - 1/30 and 1 - 1/32
    positive = [quantile(end + (0.5 - end) * i / 8) for i in range(8)]
    negative = [-quantile(end + (0.5 - end) * i / 7) for i in range(7)]
    expected = [x / max(positive) for x in sorted([*positive, 0.0, *negative])]
    assert list(GRIDS["nf4"]) == pytest.approx(expected, abs=2e-7)


def test_apot_levels_are_sums_of_powers_of_two():
    sums = {a + b for a in (0, 2**-1, 2**-2, 2**-4) for b in (0, 2**-3)}
    assert sorted(sums | {-x for x in sums}) == list(GRIDS["apot"])


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_rounds_to_the_nearest_level(levels):
    quantizer, end = in_float64(levels), max(map(abs, levels))
    values = [0.144 * x / end for x in levels]
    assert quantizer.levels.tolist() == pytest.approx(values, abs=1e-16)
    assert quantizer.thresholds.tolist() == pytest.approx([(a + b) / 2 for a, b in zip(values, values[1:])], abs=1e-16)
    w = torch.rand(500, dtype=torch.float64) * 0.5 - 0.25
    nearest = [min(values, key=lambda level: abs(level - x)) for x in w.tolist()]
    assert quantizer(w).tolist() == pytest.approx(nearest, abs=1e-16)
    single = GridQuantizer(levels, 0.3)
    quantized = single(torch.randn(10_000))
    assert torch.isin(quantized, single.levels).all()
    assert torch.equal(single(quantized), quantized)
    thresholds = single.thresholds
    assert single.index(thresholds).tolist() == list(range(1, len(levels)))
    assert single.index(torch.nextafter(thresholds, torch.tensor(-9.0))).tolist() == list(range(len(levels) - 1))
    special = single(torch.tensor([-math.inf, math.inf, math.nan]))
    assert special[:2].tolist() == [single.levels[0].item(), single.levels[-1].item()]
    assert special[2].isnan()


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_offset_is_in_units_of_the_interval_between_two_levels(levels):
    quantizer = in_float64(levels, "none")
    values = quantizer.levels.tolist()
    w = torch.rand(300, dtype=torch.float64) * 0.288 - 0.144
    for x, u in zip(w.tolist(), quantizer.offset(w).tolist(), strict=True):
        below = max((level for level in values if level <= x), default=values[0])
        above = min((level for level in values if level > x), default=values[-1])
        if below < above:
            assert u == pytest.approx((x - (below + above) / 2) / (above - below), abs=1e-12)
    beyond = quantizer.levels[-1] + torch.tensor([0.25, 1.25, 2.25], dtype=torch.float64) * (values[-1] - values[-2])
    assert quantizer.offset(beyond).tolist() == pytest.approx([-0.25] * 3, abs=1e-9)
    u, threshold, width = quantizer.interval(w)
    assert torch.allclose(threshold + u * width, w, rtol=0, atol=1e-16)


def test_which_weights_get_a_gradient():
    w = torch.tensor([-0.33, -0.27, -0.2, 0.0, 0.99, 1.01, 1.29, 1.31])
    alive = {saturation: GridQuantizer([-0.2, 0.4, 1.0], 1.0, saturation).alive(w).int().tolist()
             for saturation in ("range", "bin", "none")}  # fmt: skip
    assert alive["range"] == [0, 0, 1, 1, 1, 0, 0, 0]
    assert alive["bin"] == [1, 1, 1, 1, 1, 1, 1, 0]
    assert alive["none"] == [1] * 8


def test_a_grid_with_the_levels_of_a_uniform_quantizer_equals_it():
    w = torch.randn(100_000)
    for bits in (1, 2, 3, 4):
        uniform = UniformQuantizer(bits, 0.5)
        grid = GridQuantizer([2 * j - 2**bits + 1 for j in range(2**bits)], 0.5)
        far = (w[:, None] - uniform.thresholds).abs().amin(1) > 1e-6  # nearer, rounding decides
        assert torch.equal(grid.index(w)[far], uniform.index(w)[far])
        assert torch.allclose(grid(w), uniform(w) + (grid(w) - uniform(w)) * ~far, rtol=1e-6)
        assert torch.equal(grid.alive(w), uniform.alive(w))
        u, v = grid.offset(w), uniform.offset(w)
        assert torch.allclose((u - v) - (u - v).round(), torch.zeros_like(u), atol=2e-5)


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_per_channel_equals_one_quantizer_per_channel(levels):
    ranges, w = torch.tensor([0.1, 0.5, 2.0]), torch.randn(3, 40, 5)
    whole = GridQuantizer(levels, ranges.reshape(3, 1, 1))
    for channel in range(3):
        single = GridQuantizer(levels, ranges[channel].item())
        for method in ("__call__", "index", "alive"):
            assert torch.equal(getattr(whole, method)(w)[channel], getattr(single, method)(w[channel]))
        assert torch.allclose(whole.offset(w)[channel], single.offset(w[channel]), atol=1e-5)
        for cell_of_whole, cell_of_single in zip(whole.cell(w), single.cell(w[channel]), strict=True):
            assert torch.equal(cell_of_whole[channel], cell_of_single)


@pytest.mark.parametrize(
    ("levels", "ties"),
    [("ternary", "up"), ("fp4_e2m1", "up"), ("fp4_e2m1", "even"), ("nf4", "up"), ("int4", "even"), (UNEVEN, "up")],
    ids=str,
)
@pytest.mark.parametrize("name", EVEN)
def test_the_map_changes_no_level(name, levels, ties):
    for max_ in SCALES.values():
        quantizer = GridQuantizer(levels, max_, ties=ties)
        equivalent = SteEquivalent(getattr(estimators, name)(), quantizer)
        near = around(quantizer.thresholds.reshape(quantizer.num_levels - 1, -1).T.contiguous(), 100)
        for w in (near, torch.randn(len(near), 5_000) * 0.1):
            w = w if isinstance(max_, torch.Tensor) else w[0]
            assert torch.equal(quantizer(equivalent.weight_map(w)), quantizer(w))
            assert torch.equal(quantizer(equivalent.inverse(w)), quantizer(w))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("estimator", [Tanh(5.5), Power(5, 3), estimators.StableQat(0.21)])
def test_one_alpha_holds_for_intervals_of_any_width(estimator, levels):
    quantizer = in_float64(levels, "none")
    # The sharpness of Tanh refers to a range with as many equally spaced levels.
    even = make_quantizer(quantizer.max, "none", levels=list(range(quantizer.num_levels)))
    equivalent = SteEquivalent(estimator, quantizer)
    assert equivalent.lr_factor == pytest.approx(SteEquivalent(estimator, even).lr_factor, rel=1e-13)
    fixed = torch.cat([quantizer.levels, quantizer.thresholds])
    assert torch.allclose(equivalent.weight_map(fixed), fixed, rtol=0, atol=1e-15)
    w = torch.rand(2000, dtype=torch.float64) * 0.5 - 0.25
    w = w[(quantizer.offset(w).abs() - 0.25).abs() < 0.24]
    width = 1e-8
    slope = (equivalent.weight_map(w + width) - equivalent.weight_map(w - width)) / (2 * width)
    assert torch.allclose(
        slope * estimator.derivative(w, quantizer), torch.tensor(equivalent.lr_factor).double(), rtol=1e-4
    )
    assert torch.allclose(equivalent.inverse(equivalent.weight_map(w)), w, rtol=0, atol=1e-12)


def test_g_that_is_not_even_needs_equally_spaced_levels():
    for levels in ("fp4_e2m1", "nf4", UNEVEN):
        with pytest.raises(
            ValueError,
            match=r"Acos\(s=1.0\) is not even in u, so its weight map moves levels in "
            "proportion to the interval's width, and .* would overlap. Use equally spaced levels",
        ):
            SteEquivalent(Acos(1.0), GridQuantizer(levels, 1.0, "bin"))
    assert SteEquivalent(Acos(1.0), GridQuantizer("ternary", 1.0, "bin")).lr_factor == pytest.approx(math.sqrt(0.75))


def test_g_that_is_not_even_would_make_the_map_jump_on_unequal_widths():
    """Negative control: without the check, the M of Acos jumps at levels between intervals of different width."""
    quantizer = in_float64(UNEVEN, "none")
    equivalent = SteEquivalent(Tanh(5.5), quantizer)
    from qat_ste.theory.weight_maps import IntervalMaps

    for estimator, jumps in ((Acos(1.0), True), (Tanh(5.5), False)):
        maps = IntervalMaps(estimator, quantizer)
        level = quantizer.levels[2]
        below, above = (
            maps.forward(level.reshape(1) - 1e-12, quantizer),
            maps.forward(level.reshape(1) + 1e-12, quantizer),
        )
        assert (abs((above - below).item()) > 1e-4) is jumps
    assert equivalent.lr_factor < 1


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("fp5", r"levels must be one of ternary, fp4_e2m1, nf4, apot, int4, or a list of numbers, got 'fp5'"),
        ([1], "levels must be at least two finite numbers in ascending order"),
        ([0, 0, 1], "in ascending order"),
        ([1, -1], "in ascending order"),
        ([0, math.inf], "finite numbers"),
        ([0, math.nan, 1], "finite numbers"),
        ([0, True], "finite numbers"),
        (["a", "b"], "finite numbers"),
    ],
)  # fmt: skip
def test_rejects_levels_that_are_no_grid(levels, message):
    with pytest.raises(ValueError, match=message):
        GridQuantizer(levels, 1.0)


def test_state_recreates_the_quantizer():
    for quantizer in (GridQuantizer(UNEVEN, 0.3, "bin"), UniformQuantizer(3, 0.3, "none")):
        recreated = make_quantizer(**quantizer.state)
        assert type(recreated) is type(quantizer)
        assert recreated.state == quantizer.state
        assert torch.equal(recreated.levels, quantizer.levels)
    assert repr(GridQuantizer("ternary", 0.5)) == "GridQuantizer(levels=(-1.0, 0.0, 1.0), max=0.5, saturation='range')"


@pytest.mark.parametrize(
    "levels", [*GRIDS, [-3.0, -1.0, 0.0, 0.5], [*range(-40, 41)]], ids=[*GRIDS, "four", "binary search"]
)
def test_ties(levels):
    listed = GRIDS.get(str(levels), levels)
    zero, end = listed.index(0), max(map(abs, listed))
    even, up = (GridQuantizer(levels, end, ties=ties) for ties in ("even", "up"))
    for lower, threshold in enumerate(up.thresholds.tolist()):
        at = torch.tensor([threshold])
        below, above = (torch.nextafter(at, torch.tensor(end)) for end in (-math.inf, math.inf))
        for quantizer, at_tie in ((up, lower + 1), (even, lower + (lower - zero) % 2)):
            indices = [quantizer.index(x).item() for x in (below, at, above)]
            assert indices == [lower, at_tie, lower + 1]
            lowest, highest = quantizer.cell(torch.cat([below, above]))
            assert (quantizer.index(torch.stack([lowest[0], highest[0]])) == lower).all()
            assert (lowest[1] == torch.nextafter(highest[0], above)).all(), "cells follow each other without a gap"


def test_thresholds_of_a_tiny_range_stay_in_order():
    for power in range(-149, -140):
        quantizer = GridQuantizer("fp4_e2m1", 2.0**power, ties="even")
        assert (quantizer.thresholds.diff() >= 0).all()
        w = torch.arange(-600, 600) * 2.0**-149
        assert (quantizer.index(w).diff() >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": [-1, 1]}, "ties must be up for levels without 0, got 'even'"),
        ({"bits": 2}, "ties must be up for 2^bits levels, which do not include 0, got 'even'"),
        ({"levels": "int4", "ties": "odd"}, "ties must be one of up, even, got 'odd'"),
        ({"levels": "int4", "ties": True}, "ties must be one of up, even, got True"),
    ],
)
def test_ties_that_are_refused(arguments, message):
    with pytest.raises(ArgumentError) as error:
        make_quantizer(1.0, **{"ties": "even"} | arguments)
    assert str(error.value) == message
    assert make_quantizer(1.0, **arguments | {"ties": "up"})


def test_a_state_without_ties_is_as_it_was():
    assert list(GridQuantizer("int4", 1.0).state) == ["levels", "max", "saturation"]
    for ties in ("up", "even"):
        quantizer = GridQuantizer("fp4_e2m1", 0.5, "bin", ties)
        for same in (make_quantizer(**quantizer.state), quantizer.with_max(0.5), quantizer.rescaled(torch.tensor(0.5))):
            assert (same.ties, same.saturation) == (ties, "bin")
            assert same(torch.tensor([0.25 / 12])).item() == (0 if ties == "even" else pytest.approx(0.5 / 12))
    model = quantize_weights(network(), Quantization(levels="int4", ties="even", include=["Conv2d"]), Ste())
    again = quantize_weights(network(), Quantization(levels="int4", include=["Conv2d"]), Ste())
    again.load_state_dict(model.state_dict())
    ((_, _, fake_quantize),) = quantized_tensors(again)
    assert fake_quantize.quantizer.ties == "even"

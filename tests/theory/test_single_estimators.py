"""Properties of single estimators that are functions of the offset: values of α, jumps, shifts, errors, defaults."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from qat_ste import SteEquivalent, UniformQuantizer, estimators
from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import (
    Acos,
    Box,
    Cosine,
    Dsq,
    GaussSmooth,
    Parabola,
    Power,
    SigmoidSum,
    StableQat,
    Tanh,
    Tent,
)
from tests.conftest import ROOT
from tests.theory import slow_whole_line
from tests.theory.slow_catalogue import VALUES

QUANTIZER = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), "none")


@pytest.mark.parametrize(
    ("estimator", "alpha"),
    [
        (Dsq(0.2), 0.909),
        (Dsq(0.4), 0.982),
        (Tanh(15), 0.0091),  # 10 per step size
        (StableQat(0.21), 0.1135),
        (Cosine(0.6), 0.8),
        (GaussSmooth(0.3), 0.94114),
        (Tent(1.0), 1.233),
        (Power(5, 3), 0.3594),
        (Power(5, 1e6), 9 / 25),
        (Box(1.0), 1.0),
        (Box(2.0), 1.0),
    ],
)
def test_alpha_has_the_stated_digits(estimator, alpha):
    digits = len(str(alpha).partition(".")[2])
    assert SteEquivalent(estimator, QUANTIZER).lr_factor == pytest.approx(alpha, abs=0.51 * 10**-digits)


def test_cosine_approximates_gaussian_noise():
    cosine = Cosine(2 * math.exp(-2 * (math.pi * 0.3) ** 2))
    equivalent = SteEquivalent(cosine, QUANTIZER)
    assert equivalent.lr_factor == pytest.approx(0.94098, abs=5e-6)
    assert equivalent.lr_factor == pytest.approx(SteEquivalent(GaussSmooth(0.3), QUANTIZER).lr_factor, abs=2e-4)


def test_dsq_and_stacked_sigmoid_are_tanh_in_other_parameters():
    u = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    for bits in (1, 2, 4):
        quantizer = UniformQuantizer(bits, 1.0)
        for estimator, k in ((Dsq(0.2), math.log(9)), (estimators.StackedSigmoid(3.0), 1.5)):
            same = Tanh(k * (2**bits - 1) / 2).shape(u, quantizer)
            assert torch.allclose(estimator.shape(u, quantizer), same, rtol=1e-13)


def test_jumps_are_detected():
    for h, jumps in ((1.0, False), (1.5, True), (2.0, False), (2.7, True)):
        assumptions = SteEquivalent(Box(h), QUANTIZER).assumptions
        assert (assumptions.lipschitz == math.inf) is jumps
        assert assumptions.even
    assert SteEquivalent(Acos(1.0), QUANTIZER).assumptions.lipschitz == math.inf
    assert SteEquivalent(Power(5, 3), QUANTIZER).assumptions.lipschitz < 200


def test_acos_moves_the_levels_and_needs_another_saturation_than_range():
    with pytest.raises(ValueError, match=r"Acos\(s=1.0\) is not even in u, .* Use saturation 'bin' or 'none'"):
        SteEquivalent(Acos(1.0), UniformQuantizer(2, 0.144))
    assert SteEquivalent(Acos(0.0), UniformQuantizer(2, 0.144)).lr_factor == 1
    for saturation in ("bin", "none"):
        quantizer = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), saturation)
        equivalent = SteEquivalent(Acos(1.0), quantizer)
        assert not equivalent.assumptions.even
        moved = equivalent.weight_map(quantizer.levels) - quantizer.levels
        assert (moved / quantizer.step).tolist() == pytest.approx([1 / 6] * 4)  # from 1/2 to 2/3
        assert torch.allclose(equivalent.weight_map(quantizer.thresholds), quantizer.thresholds, rtol=1e-14)


def test_acos_on_the_threshold_has_the_slope_above_it():
    u = torch.tensor([-1e-12, 0.0, 1e-12], dtype=torch.float64)
    assert Acos(1.0).shape(u, QUANTIZER).tolist() == pytest.approx([1.5, 0.5, 0.5])


def test_tent_without_slope_is_the_ste():
    u = torch.linspace(-0.5, 0.5, 37, dtype=torch.float64)
    assert torch.equal(Tent(0.0).integral(u, QUANTIZER), u)
    assert torch.equal(Tent(0.0).shape(u, QUANTIZER), torch.ones_like(u))


@pytest.mark.parametrize(
    ("estimator", "place"),
    [
        (Cosine(1.0), r"g = 0 at w = .*·max \(u = -?0\.5"),
        (Cosine(-1.0), r"g = 0 at w = .*·max \(u = -?0\.0000"),
        (Cosine(2.0), r"g = -1 at w = .*·max \(u = -?0\.5"),
        (StableQat(0.25), r"g = -0\.05\d+ at w = .*·max \(u = -?0\.5"),
        (Acos(2.0), r"g = 0 at w = .*·max \(u = 0\.0000"),
        (Tent(-2.0), r"g = .* at w = .*·max \(u = -?0\.0000"),
        (Parabola(1.0, 4.0), r"g = .* at w = .*·max \(u = -?0\.5"),
        (Box(0.5), r"g = 0 at w = .*·max \(u = -?0\.5"),
        (GaussSmooth(0.02), r"g = .* at w = .*·max \(u = -?0\.5"),
        (SigmoidSum(500.0), r"g = .* at w = .*·max \(u = -?0\.5"),
    ],
)
def test_estimators_outside_the_theorem_train_but_have_no_counterpart(estimator, place):
    w = torch.linspace(-0.3, 0.3, 1001)
    assert torch.isfinite(estimator.derivative(w, UniformQuantizer(2, 0.144))).all()
    with pytest.raises(ValueError, match="is not positive: " + place):
        SteEquivalent(estimator, QUANTIZER)


def test_stable_qat_with_amplitude_a_quarter_is_negative_in_29_percent_of_the_interval():
    u = torch.linspace(-0.5, 0.5, 100_001)
    assert (StableQat(0.25).shape(u, QUANTIZER) < 0).float().mean().item() == pytest.approx(0.287, abs=5e-4)
    assert StableQat(0.25).primitive(u.double(), QUANTIZER) is None


def options() -> dict[str, dict]:
    """Class name and arguments in each YAML file of an estimator that stays the same during training."""
    nodes = [yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "estimator").glob("*.yaml")]
    nodes = [node for node in nodes if "annealed" not in node["_target_"]]
    return {node.pop("_target_").removeprefix("qat_ste.estimators."): node for node in nodes}


def test_every_estimator_has_a_yaml_file_with_its_defaults():
    others = {*slow_whole_line.VALUES, "Ste", "Pwl", "Formula"}
    assert set(options()) == set(estimators.__all__) - {"Estimator"} == {*VALUES, *others}
    for name, arguments in options().items():
        estimator = getattr(estimators, name)()
        assert estimator == getattr(estimators, name)(**arguments)
        assert vars(estimator) == arguments, "attributes are the arguments"


@pytest.mark.parametrize(
    ("name", "argument"), [(name, key) for name, node in options().items() for key in node if name != "Formula"]
)
def test_rejects_values_out_of_bounds(name, argument):
    bounds = {
        ("Dsq", "alpha"): ("a number between 0 and 1, both excluded", [0, 1, -1]),
        ("GaussSmooth", "sigma"): ("a number between 0 and 2, both excluded", [0, 2]),
        ("SigmoidSum", "temperature"): ("a finite number above 0.5", [0.5, -1]),
        ("Power", "k"): ("a finite number above 1", [1, 0]),
        ("Ewgs", "delta"): ("a number between 0 and 2, both excluded", [0, 2]),
        ("Reste", "o"): ("a finite number above 0.5", [0.5, 0]),
        ("Reste", "t"): ("a finite number above 0.1", [0.1, 0]),
        **{key: ("a finite number", []) for key in (("Cosine", "a"), ("Acos", "s"), ("Tent", "s"))},
    }
    allowed, out_of_bounds = bounds.get((name, argument), ("a positive finite number", [0, -1]))
    for value in (*out_of_bounds, math.inf, -math.inf, math.nan, "sharp", None, True, [1.0]):
        with pytest.raises(ArgumentError) as error:
            getattr(estimators, name)(**{argument: value})
        assert str(error.value) == f"{argument} must be {allowed}, got {value!r}"

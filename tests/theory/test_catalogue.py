"""The estimators that are periodic in the offset: formula, α, weight map, soft quantizer, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from mpmath import mpf

from qat_ste import SteEquivalent, UniformQuantizer, estimators
from qat_ste.estimators import (
    Acos,
    Box,
    Cosine,
    Dsq,
    Estimator,
    FastSigmoid,
    GaussSmooth,
    Parabola,
    Power,
    SigmoidSum,
    StableQat,
    Tanh,
    Tent,
)
from qat_ste.theory.numerics import inverse_integral
from tests.conftest import ROOT
from tests.floats import around
from tests.theory import slow_catalogue as slow
from tests.theory import slow_whole_line

VALUES: dict[str, list[tuple[float, ...]]] = {
    "Scaled": [(0.5,), (1.0,), (3.0,)],
    "Tanh": [(2.0,), (5.5,), (18.0,)],
    "Dsq": [(0.05,), (0.2,), (0.4,)],
    "StackedSigmoid": [(1.0,), (4.0,), (10.0,)],
    "TanhFloor": [(1.0, 0.001), (20.0, 0.001), (3.0, 1e-12)],
    "Arctan": [(0.5,), (math.pi,), (20.0,)],
    "FastSigmoid": [(1.0,), (5.0,), (25.0,)],
    "Exp": [(1.0,), (5.0,), (20.0,)],
    "Laplace": [(0.05,), (0.3,), (1.0,)],
    "Gauss": [(0.5,), (3.0,), (6.0,)],
    "GaussSmooth": [(0.1,), (0.3,), (1.0,)],
    "SigmoidSum": [(2.0,), (10.0,), (20.0,)],
    "Cosine": [(-0.5,), (0.5,), (0.99,)],
    "StableQat": [(0.05,), (0.21,), (0.224,)],
    "Acos": [(0.5,), (1.0,), (-1.5,)],
    "Tent": [(0.5,), (1.0,), (-1.5,)],
    "Parabola": [(1.0, 1.0), (1.0, 3.0), (2.0, 0.5)],
    "Power": [(5.0, 3.0), (2.0, 100.0), (1.5, 0.4)],
    "Box": [(1.0,), (1.5,), (2.7,)],
    "Ewgs": [(0.2,), (1.0,), (1.9,)],
}
APART = {"Ewgs", "Scaled", "TanhFloor", "StableQat", "Tent", "Parabola", "Power"}  # do not join the levels
CASES = [pytest.param(name, values, id=f"{name}-{values}") for name in VALUES for values in VALUES[name]]
every_case = pytest.mark.parametrize(("name", "values"), CASES)

QUANTIZER = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), "none")


def build(name: str, values: tuple[float, ...]) -> Estimator:
    return getattr(estimators, name)(*values)


def exact(values: tuple[float, ...]) -> tuple:
    return tuple(mpf(value) for value in values)


def offsets(name: str, values: tuple[float, ...], points: int = 37) -> torch.Tensor:
    """Points between two levels, none on a kink."""
    u = torch.linspace(-0.4987, 0.4993, points, dtype=torch.float64)
    for kink in (0.0, *map(float, slow.kinks(name, exact(values)))):
        u = u[(u.abs() - kink).abs() > 1e-4]
    return u


def check_formula(estimator: Estimator, name: str, values: tuple[float, ...]) -> None:
    u = offsets(name, values)
    expected = [float(slow.G[name](mpf(x), *exact(values))) for x in u.tolist()]
    assert estimator.shape(u, QUANTIZER).tolist() == pytest.approx(expected, rel=1e-12)


def check_alpha(estimator: Estimator, name: str, values: tuple[float, ...]) -> None:
    expected = float(slow.alpha(name, exact(values)))
    assert SteEquivalent(estimator, QUANTIZER).lr_factor == pytest.approx(expected, rel=1e-10)


def check_slope_of_the_map(estimator: Estimator, name: str, values: tuple[float, ...]) -> None:
    """M′·g = α, by central differences over 2e-6 of a step."""
    pair = SteEquivalent(estimator, QUANTIZER)
    w = (offsets(name, values) + torch.tensor([[-2.0], [0.0], [1.0], [3.0]])) * QUANTIZER.step
    width = 1e-6 * QUANTIZER.step
    slope = (pair.weight_map(w + width) - pair.weight_map(w - width)) / (2 * width)
    product = slope * estimator.derivative(w, QUANTIZER)
    assert product.flatten().tolist() == pytest.approx([pair.lr_factor] * product.numel(), rel=1e-5)


def check_primitive(estimator: Estimator, name: str, values: tuple[float, ...]) -> None:
    u = offsets(name, values).requires_grad_()
    soft = estimator.primitive(u, QUANTIZER)
    assert soft is not None
    (slope,) = torch.autograd.grad(soft.sum(), u)
    assert torch.allclose(slope, estimator.shape(u.detach(), QUANTIZER), rtol=1e-10, atol=1e-15)
    assert estimator.primitive(torch.zeros(1, dtype=torch.float64), QUANTIZER).item() == pytest.approx(0, abs=1e-15)


CHECKS = [check_formula, check_alpha, check_slope_of_the_map, check_primitive]


@pytest.mark.parametrize("check", CHECKS)
@every_case
def test_estimator(name, values, check):
    check(build(name, values), name, values)


class WrongExponent(FastSigmoid):
    def shape(self, u, quantizer):
        return super().shape(u, quantizer) ** 1.0001


class WrongAlpha(FastSigmoid):
    def integral(self, u, quantizer):
        return super().integral(u, quantizer) * (1 + 1e-9)


class WrongMap(FastSigmoid):
    def integral(self, u, quantizer):
        return super().integral(u, quantizer) + 1e-4 * torch.sin(2 * math.pi * u)


@pytest.mark.parametrize(
    ("wrong", "caught_by"),
    [
        (WrongExponent, [check_formula, check_slope_of_the_map, check_primitive]),
        (WrongAlpha, [check_alpha]),
        (WrongMap, [check_slope_of_the_map]),
    ],
)
def test_checks_can_fail(wrong, caught_by):
    """Negative control: each check refuses what is a little wrong, and no other does."""
    for check in CHECKS:
        if check in caught_by:
            with pytest.raises(AssertionError):
                check(wrong(5.0), "FastSigmoid", (5.0,))
        else:
            check(wrong(5.0), "FastSigmoid", (5.0,))


@pytest.mark.parametrize(("name", "values"), [case for case in CASES if case.values[0] in slow.ALPHA])
def test_formula_of_alpha(name, values):
    expected = float(slow.ALPHA[name](*exact(values)))
    assert SteEquivalent(build(name, values), QUANTIZER).lr_factor == pytest.approx(expected, rel=1e-10)


@every_case
def test_numeric_integration_agrees_with_the_closed_form(name, values):
    estimator = build(name, values)
    u = offsets(name, values)
    closed = estimator.integral(u, QUANTIZER)
    if closed is None:
        assert name in {"Gauss", "GaussSmooth", "SigmoidSum"}
        return
    numeric = inverse_integral(lambda u: estimator.shape(u, QUANTIZER))(u)
    assert torch.allclose(numeric, closed, rtol=1e-10, atol=1e-14 * closed.abs().max().item())
    if name != "Acos":
        assert torch.equal(estimator.integral(-u, QUANTIZER), -closed), "odd where g is even"


@every_case
def test_map_and_inverse_undo_each_other(name, values):
    pair = SteEquivalent(build(name, values), QUANTIZER)
    w = torch.rand(300, dtype=torch.float64) * 0.6 - 0.3
    assert torch.allclose(pair.inverse(pair.weight_map(w)), w, rtol=0, atol=1e-9)
    assert torch.allclose(pair.weight_map(pair.inverse(w)), w, rtol=0, atol=1e-9)


@every_case
def test_soft_quantizer_joins_the_levels_or_not(name, values):
    ends = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    lower, upper = build(name, values).primitive(ends, QUANTIZER).tolist()
    if name not in APART:
        assert upper - lower == pytest.approx(1, abs=1e-12)
    elif (name, values) != ("Scaled", (1.0,)):
        assert abs(upper - lower - 1) > 1e-4


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@every_case
def test_no_weight_changes_its_level_under_the_map(name, values, bits):
    for saturation in ("bin", "none") if name == "Acos" else ("range", "none"):
        quantizer = UniformQuantizer(bits, 0.144, saturation)
        pair = SteEquivalent(build(name, values), quantizer)
        for w in (around(quantizer.thresholds, 100), torch.randn(20_000) * 0.1):
            mapped = pair.weight_map(w)
            assert mapped.dtype == torch.float32
            assert torch.equal(quantizer(mapped), quantizer(w))


@every_case
def test_shape_keeps_dtype_form_and_argument(name, values):
    estimator = build(name, values)
    u = offsets(name, values)[:20].reshape(4, 5)
    before = u.clone()
    g = estimator.shape(u, QUANTIZER)
    assert torch.equal(u, before)
    assert g.shape == u.shape
    single = estimator.shape(u.float(), QUANTIZER)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), g, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Tanh", (1e4,)), ("Dsq", (1e-300,)), ("StackedSigmoid", (1e4,)), ("TanhFloor", (1e4, 1e-3)), ("Arctan", (1e4,)),
        ("FastSigmoid", (1e4,)), ("Exp", (1e4,)), ("Laplace", (1e-4,)), ("Gauss", (1e4,)), ("GaussSmooth", (1e-4,)),
        ("SigmoidSum", (2000.0,)), ("StableQat", (0.25,)), ("Power", (1e4, 1e4)),
    ],
)  # fmt: skip
def test_shape_is_finite_however_sharp(name, values):
    u = torch.linspace(-0.5, 0.5, 101)
    g = build(name, values).shape(u, QUANTIZER)
    assert torch.isfinite(g).all()
    assert (g >= 0).all() or name == "StableQat"


@pytest.mark.parametrize(
    ("estimator", "alpha"),
    [
        (Dsq(0.2), 0.909),
        (Dsq(0.4), 0.982),
        (Tanh(15), 0.0091),  # 10 per step
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
def test_alpha_in_figures(estimator, alpha):
    digits = len(str(alpha).partition(".")[2])
    assert SteEquivalent(estimator, QUANTIZER).lr_factor == pytest.approx(alpha, abs=0.51 * 10**-digits)


def test_cosine_stands_for_gaussian_noise():
    stand_in = Cosine(2 * math.exp(-2 * (math.pi * 0.3) ** 2))
    pair = SteEquivalent(stand_in, QUANTIZER)
    assert pair.lr_factor == pytest.approx(0.94098, abs=5e-6)
    assert pair.lr_factor == pytest.approx(SteEquivalent(GaussSmooth(0.3), QUANTIZER).lr_factor, abs=2e-4)


def test_dsq_and_stacked_sigmoid_are_the_tanh_in_steps():
    u = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    for bits in (1, 2, 4):
        quantizer = UniformQuantizer(bits, 1.0)
        for estimator, k in ((Dsq(0.2), math.log(9)), (estimators.StackedSigmoid(3.0), 1.5)):
            same = Tanh(k * (2**bits - 1) / 2).shape(u, quantizer)
            assert torch.allclose(estimator.shape(u, quantizer), same, rtol=1e-13)


def test_a_jump_is_known_as_such():
    for h, jumps in ((1.0, False), (1.5, True), (2.0, False), (2.7, True)):
        known = SteEquivalent(Box(h), QUANTIZER).assumptions
        assert (known.lipschitz == math.inf) is jumps
        assert known.even
    assert SteEquivalent(Acos(1.0), QUANTIZER).assumptions.lipschitz == math.inf
    assert SteEquivalent(Power(5, 3), QUANTIZER).assumptions.lipschitz < 200


def test_acos_moves_the_levels_and_so_needs_a_range_without_end():
    with pytest.raises(ValueError, match=r"Acos\(s=1.0\) is not even in u, .* Use saturation 'bin' or 'none'"):
        SteEquivalent(Acos(1.0), UniformQuantizer(2, 0.144))
    assert SteEquivalent(Acos(0.0), UniformQuantizer(2, 0.144)).lr_factor == 1
    for saturation in ("bin", "none"):
        quantizer = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), saturation)
        pair = SteEquivalent(Acos(1.0), quantizer)
        assert not pair.assumptions.even
        moved = pair.weight_map(quantizer.levels) - quantizer.levels
        assert (moved / quantizer.step).tolist() == pytest.approx([1 / 6] * 4)  # from 1/2 to 2/3
        assert torch.allclose(pair.weight_map(quantizer.thresholds), quantizer.thresholds, rtol=1e-14)


def test_acos_on_the_threshold_has_the_slope_of_the_level_above():
    at = torch.tensor([-1e-12, 0.0, 1e-12], dtype=torch.float64)
    assert Acos(1.0).shape(at, QUANTIZER).tolist() == pytest.approx([1.5, 0.5, 0.5])


def test_tent_without_slope_is_the_ste():
    u = offsets("Tent", (1.0,))
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
def test_what_the_theorem_cannot_cover_trains_but_has_no_counterpart(estimator, place):
    w = torch.linspace(-0.3, 0.3, 1001)
    assert torch.isfinite(estimator.derivative(w, UniformQuantizer(2, 0.144))).all()
    with pytest.raises(ValueError, match="is not positive: " + place):
        SteEquivalent(estimator, QUANTIZER)


def test_stable_qat_is_negative_in_more_than_a_quarter_of_the_interval_at_a_quarter():
    u = torch.linspace(-0.5, 0.5, 100_001)
    assert (StableQat(0.25).shape(u, QUANTIZER) < 0).float().mean().item() == pytest.approx(0.287, abs=5e-4)
    assert StableQat(0.25).primitive(u.double(), QUANTIZER) is None


def options() -> dict[str, dict]:
    """Class name and arguments of each YAML of an estimator that does not change."""
    nodes = [yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "estimator").glob("*.yaml")]
    nodes = [node for node in nodes if "annealed" not in node["_target_"]]
    return {node.pop("_target_").removeprefix("qat_ste.estimators."): node for node in nodes}


def test_every_estimator_has_a_yaml_with_its_defaults():
    others = {*slow_whole_line.VALUES, "Ste", "Pwl", "Formula"}
    assert set(options()) == set(estimators.__all__) - {"Estimator"} == {*VALUES, *others}
    for name, arguments in options().items():
        estimator = getattr(estimators, name)()
        assert estimator == getattr(estimators, name)(**arguments)
        assert vars(estimator) == arguments, "what is shown and compared is what was given"


@pytest.mark.parametrize(
    ("name", "argument"), [(name, key) for name, node in options().items() for key in node if name != "Formula"]
)
def test_refuses_what_is_no_number_in_bounds(name, argument):
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
        with pytest.raises(ValueError) as error:
            getattr(estimators, name)(**{argument: value})
        assert str(error.value) == f"{argument} must be {allowed}, got {value!r}"

"""All estimators that are functions of the offset: formula, α, weight map, soft quantizer."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import mpf

from qat_ste import SteEquivalent, UniformQuantizer, estimators
from qat_ste.estimators import Estimator, FastSigmoid
from qat_ste.theory.numerics import inverse_integral
from tests.floats import around
from tests.theory import slow_catalogue as slow
from tests.theory.slow_catalogue import VALUES

NOT_JOINING = {
    "Ewgs",
    "Scaled",
    "TanhFloor",
    "StableQat",
    "Tent",
    "Parabola",
    "Power",
}  # soft quantizers that do not join the levels
CASES = [pytest.param(name, values, id=f"{name}-{values}") for name in VALUES for values in VALUES[name]]
every_case = pytest.mark.parametrize(("name", "values"), CASES)

QUANTIZER = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), "none")


def build(name: str, values: tuple[float, ...]) -> Estimator:
    return getattr(estimators, name)(*values)


def exact(values: tuple[float, ...]) -> tuple:
    return tuple(mpf(value) for value in values)


def offsets(name: str, values: tuple[float, ...], points: int = 37) -> torch.Tensor:
    """Offsets between two levels, none at a kink."""
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
    """M′·g = α, by central differences over 2e-6 step sizes."""
    equivalent = SteEquivalent(estimator, QUANTIZER)
    w = (offsets(name, values) + torch.tensor([[-2.0], [0.0], [1.0], [3.0]])) * QUANTIZER.step
    width = 1e-6 * QUANTIZER.step
    slope = (equivalent.weight_map(w + width) - equivalent.weight_map(w - width)) / (2 * width)
    product = slope * estimator.derivative(w, QUANTIZER)
    assert product.flatten().tolist() == pytest.approx([equivalent.lr_factor] * product.numel(), rel=1e-5)


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
    """Negative control: a slightly wrong estimator fails these checks and no others."""
    for check in CHECKS:
        if check in caught_by:
            with pytest.raises(AssertionError):
                check(wrong(5.0), "FastSigmoid", (5.0,))
        else:
            check(wrong(5.0), "FastSigmoid", (5.0,))


@pytest.mark.parametrize(("name", "values"), [case for case in CASES if case.values[0] in slow.ALPHA])
def test_alpha_follows_its_formula(name, values):
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
def test_map_and_inverse_cancel(name, values):
    equivalent = SteEquivalent(build(name, values), QUANTIZER)
    w = torch.rand(300, dtype=torch.float64) * 0.6 - 0.3
    assert torch.allclose(equivalent.inverse(equivalent.weight_map(w)), w, rtol=0, atol=1e-9)
    assert torch.allclose(equivalent.weight_map(equivalent.inverse(w)), w, rtol=0, atol=1e-9)


@every_case
def test_which_soft_quantizers_join_the_levels(name, values):
    ends = torch.tensor([-0.5, 0.5], dtype=torch.float64)
    lower, upper = build(name, values).primitive(ends, QUANTIZER).tolist()
    if name not in NOT_JOINING:
        assert upper - lower == pytest.approx(1, abs=1e-12)
    elif (name, values) != ("Scaled", (1.0,)):
        assert abs(upper - lower - 1) > 1e-4


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@every_case
def test_the_map_changes_no_level(name, values, bits):
    for saturation in ("bin", "none") if name == "Acos" else ("range", "none"):
        quantizer = UniformQuantizer(bits, 0.144, saturation)
        equivalent = SteEquivalent(build(name, values), quantizer)
        for w in (around(quantizer.thresholds, 100), torch.randn(20_000) * 0.1):
            mapped = equivalent.weight_map(w)
            assert mapped.dtype == torch.float32
            assert torch.equal(quantizer(mapped), quantizer(w))


@every_case
def test_shape_keeps_dtype_dimensions_and_argument(name, values):
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
def test_sharp_shapes_are_finite(name, values):
    u = torch.linspace(-0.5, 0.5, 101)
    g = build(name, values).shape(u, QUANTIZER)
    assert torch.isfinite(g).all()
    assert (g >= 0).all() or name == "StableQat"

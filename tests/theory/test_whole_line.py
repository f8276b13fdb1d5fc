"""Estimators that are functions of x = w/max: formula, integral, map, assumptions, errors, end of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import mpf

from qat_ste import GridQuantizer, SteEquivalent, UniformQuantizer, estimators
from qat_ste.estimators import ApproxSign, Ede, Mad, Rbnn, Reste, SwishSign, Xnor
from qat_ste.estimators.clipped_ste import ClippedSte
from qat_ste.estimators.whole_line import WholeLine
from tests.floats import around
from tests.theory import slow_whole_line as slow

CASES = [pytest.param(name, values, id=f"{name}-{values}") for name in slow.VALUES for values in slow.VALUES[name]]
COVERED = [case for case in CASES if case.values[0] != "SwishSign"]
every_case = pytest.mark.parametrize(("name", "values"), CASES)
every_covered = pytest.mark.parametrize(("name", "values"), COVERED)

SCALES = {"per tensor": 0.144, "per channel": torch.tensor([0.05, 0.144, 1.7]).reshape(3, 1)}
ONE_BIT = UniformQuantizer(1, torch.tensor(0.144, dtype=torch.float64))


def build(name: str, values: tuple[float, ...]) -> WholeLine:
    return getattr(estimators, name)(*values)


def exact(values: tuple[float, ...]) -> tuple:
    return tuple(mpf(value) for value in values)


def points(name: str, values: tuple[float, ...]) -> torch.Tensor:
    """x on both sides of 0, up to the end of g or to 4, none at a kink."""
    end = min(float(slow.end(name, exact(values))), 4.0)
    x = torch.linspace(-0.9987, 0.9993, 38, dtype=torch.float64) * end
    for kink in map(float, slow.kinks(name, exact(values))):
        x = x[(x.abs() - kink).abs() > 1e-4]
    return x


def check_formula(estimator: WholeLine, name: str, values: tuple[float, ...]) -> None:
    x = points(name, values)
    expected = [float(slow.G[name](mpf(y), *exact(values))) for y in x.tolist()]
    assert estimator.of(x).tolist() == pytest.approx(expected, rel=1e-11)
    assert estimator.derivative(x * ONE_BIT.max, ONE_BIT).tolist() == pytest.approx(expected, rel=1e-10)


def check_primitive(estimator: WholeLine, name: str, values: tuple[float, ...]) -> None:
    x = points(name, values).requires_grad_()
    soft = estimator.primitive_of(x)
    (slope,) = torch.autograd.grad(soft.sum(), x)
    assert torch.allclose(slope, estimator.of(x.detach()), rtol=1e-9, atol=1e-12)
    assert estimator.primitive_of(torch.zeros(1, dtype=torch.float64)).item() == 0


def check_integral(estimator: WholeLine, name: str, values: tuple[float, ...]) -> None:
    x = points(name, values)
    x = x[x > 0][::5]
    expected = [float(slow.integral(name, exact(values), mpf(y))) for y in x.tolist()]
    assert estimator.integral_of(x).tolist() == pytest.approx(expected, rel=1e-10)


def check_slope_of_the_map(estimator: WholeLine, name: str, values: tuple[float, ...]) -> None:
    """M′·g = α = 1, by central differences over 2e-6·max."""
    equivalent = SteEquivalent(estimator, ONE_BIT)
    assert equivalent.lr_factor == 1
    w, width = points(name, values) * ONE_BIT.max, 1e-6 * ONE_BIT.max
    slope = (equivalent.weight_map(w + width) - equivalent.weight_map(w - width)) / (2 * width)
    assert (slope * estimator.derivative(w, ONE_BIT)).tolist() == pytest.approx([1.0] * len(w), rel=1e-5)


CHECKS = [check_formula, check_primitive, check_integral, check_slope_of_the_map]


@pytest.mark.parametrize("check", CHECKS)
@every_case
def test_estimator(name, values, check):
    if name == "SwishSign" and check in (check_integral, check_slope_of_the_map):
        pytest.skip("has no map")
    check(build(name, values), name, values)


class WrongExponent(Reste):
    def of(self, x):
        return super().of(x) ** 1.0001


class WrongMap(Reste):
    def integral_of(self, x):
        return super().integral_of(x) * (1 + 1e-4 * x)


class WrongSoftQuantizer(Reste):
    def primitive_of(self, x):
        return super().primitive_of(x) * (1 + 1e-8)


@pytest.mark.parametrize(
    ("wrong", "caught_by"),
    [
        (WrongExponent, [check_formula, check_primitive, check_slope_of_the_map]),
        (WrongMap, [check_integral, check_slope_of_the_map]),
        (WrongSoftQuantizer, [check_primitive]),
    ],
)
def test_checks_can_fail(wrong, caught_by):
    """Negative control: a slightly wrong estimator fails these checks and no others."""
    for check in CHECKS:
        if check in caught_by:
            with pytest.raises(AssertionError):
                check(wrong(3.0, 0.1, 1.5), "Reste", (3.0, 0.1, 1.5))
        else:
            check(wrong(3.0, 0.1, 1.5), "Reste", (3.0, 0.1, 1.5))


@every_covered
def test_map_and_inverse_cancel(name, values):
    equivalent = SteEquivalent(build(name, values), ONE_BIT)
    end = min(float(slow.end(name, exact(values))), 2.5)
    w = (torch.rand(300, dtype=torch.float64) * 2 - 1) * end * 0.99 * ONE_BIT.max
    assert torch.allclose(equivalent.inverse(equivalent.weight_map(w)), w, rtol=0, atol=1e-9)
    z = equivalent.weight_map(w).abs().max() * (torch.rand(300, dtype=torch.float64) * 2 - 1)
    assert torch.allclose(equivalent.weight_map(equivalent.inverse(z)), z, rtol=1e-9, atol=1e-9)


def check_levels_are_kept(estimator, quantizers):
    for quantizer in quantizers:
        equivalent = SteEquivalent(estimator, quantizer)
        near = around(quantizer.thresholds.reshape(quantizer.num_levels - 1, -1).T.contiguous(), 200)
        ends = quantizer.max * torch.tensor([-2.0, -1.5, -1, 1, 1.5, 2.0])
        for w in (near, torch.randn(len(near), 20_000) * 0.1, ends.reshape(len(near), -1)):
            w = w if isinstance(quantizer.max, torch.Tensor) else w[0]
            for mapped in (equivalent.weight_map(w), equivalent.inverse(w)):
                assert mapped.dtype == torch.float32
                assert torch.isfinite(mapped).all()
                assert torch.equal(quantizer(mapped), quantizer(w))


@every_covered
def test_the_map_changes_no_level(name, values):
    check_levels_are_kept(build(name, values), [UniformQuantizer(1, max_) for max_ in SCALES.values()])


@pytest.mark.parametrize("levels", [2, 3, 4, "ternary", "fp4_e2m1", "nf4"])
@pytest.mark.parametrize("s", [0.95, 1.0, 2.5])
def test_the_map_of_mad_changes_no_level(s, levels):
    kind = UniformQuantizer if isinstance(levels, int) else GridQuantizer
    check_levels_are_kept(Mad(s), [kind(levels, max_) for max_ in SCALES.values()])
    inside = torch.linspace(-0.94, 0.94, 1001) * 0.144
    assert torch.equal(SteEquivalent(Mad(s), kind(levels, 0.144)).weight_map(inside), inside)


@pytest.mark.parametrize(
    ("estimator", "lower", "upper", "lipschitz"),
    [
        (ApproxSign(), 0, 2, 1),  # |dg/dx| = 2, and the interval has width 2·max
        (Ede(1.0), 1 - math.tanh(4) ** 2, 1, 2 / (3 * math.sqrt(3))),
        (Mad(1.0), 0.25, 1, 0.5),
        (Rbnn(1.0), 0, math.sqrt(2), 0.5),
        (Reste(), 1.5 ** (-2 / 3) / 3, 0.1 ** (-2 / 3), math.inf),
        (Reste(o=1.0), 1, 1, 0),
        (Xnor(), 1 / 576, 0.5 + 1 / 576, math.inf),
    ],
)
def test_assumptions(estimator, lower, upper, lipschitz):
    """L₋ and L₊ up to |w| = 4·max, and the Lipschitz constant of g(u) or infinity; the interval has width 2·max."""
    assumptions = SteEquivalent(estimator, ONE_BIT).assumptions
    assert (assumptions.lower, assumptions.upper) == pytest.approx((lower, upper), rel=2e-3, abs=1e-3)
    assert assumptions.lipschitz == pytest.approx(4 * lipschitz, rel=1e-2, abs=1e-9)
    assert assumptions.even


@pytest.mark.parametrize(("beta", "end"), [(2.0, "1.2"), (5.0, "0.48"), (10.0, "0.24")])
def test_swish_sign_is_rejected_with_the_region(beta, end):
    with pytest.raises(ValueError, match=rf"is not positive: g = -.*, g\(w\) <= 0 for \|w/max\| > {end};"):
        SteEquivalent(SwishSign(beta), ONE_BIT)
    w = torch.linspace(-30, 30, 10_001)
    g = SwishSign(beta).derivative(w, UniformQuantizer(1, 1.0))
    assert torch.isfinite(g).all()
    assert ((g > 0) == (w.abs() < 2.39936 / beta))[w.abs() < 20 / beta].all()


@pytest.mark.parametrize(
    ("estimator", "quantizer"),
    [(Ede(), UniformQuantizer(2, 1.0)), (ApproxSign(), GridQuantizer("ternary", 1.0)), (Xnor(), GridQuantizer([0, 1], 1.0))],
)  # fmt: skip
def test_estimators_for_one_bit_are_rejected_on_other_grids(estimator, quantizer):
    with pytest.raises(ValueError, match="is made for the two levels -max and max of one bit"):
        SteEquivalent(estimator, quantizer)
    estimator.check(GridQuantizer([-1, 1], 0.5))


def test_mad_with_g_below_1_between_two_thresholds_is_not_cyclical():
    assert SteEquivalent(Mad(0.7), UniformQuantizer(2, 1.0)).lr_factor == 1  # the outermost threshold is at 2/3
    with pytest.raises(ValueError, match=r"Mad\(s=0.5\) is not cyclical: g = 0\.7.* at w = -0\.66.*·max"):
        SteEquivalent(Mad(0.5), UniformQuantizer(2, 1.0))
    assert SteEquivalent(Mad(0.5), UniformQuantizer(1, 1.0)).lr_factor == 1


@every_case
def test_shape_and_derivative_keep_dtype_dimensions_and_argument(name, values):
    estimator = build(name, values)
    w = (torch.rand(4, 5) - 0.5) * 4
    before = w.clone()
    for max_ in (0.5, torch.full((4, 1), 0.5), torch.full((4, 1), 0.5, dtype=torch.float64)):
        quantizer = UniformQuantizer(1, max_)
        g = estimator.derivative(w, quantizer)
        assert g.dtype == torch.float32
        assert torch.allclose(g.double(), estimator.derivative(w.double(), quantizer), rtol=1e-4, atol=1e-6)
    u = torch.rand(9, dtype=torch.float64) - 0.5
    assert torch.equal(estimator.shape(u, ONE_BIT), estimator.of(2 * u))
    assert torch.equal(w, before)


# End of the gradient


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("estimator", [ApproxSign(), Rbnn(1.0), Reste()])
def test_frozen_weights_are_frozen_in_the_counterpart(estimator, scale):
    quantizer = UniformQuantizer(1, SCALES[scale])
    equivalent = SteEquivalent(estimator, quantizer)
    x = torch.rand(3, 20_000) * 4 - 2
    w = x * quantizer.max
    alive = estimator.derivative(w, quantizer) > 0
    assert 0.2 < alive.float().mean() < 0.9
    remapped = equivalent.counterpart(remapped=True).derivative(equivalent.weight_map(w), quantizer)
    assert torch.equal(remapped > 0, alive)
    assert torch.equal(equivalent.counterpart(remapped=False).derivative(w, quantizer) > 0, alive)
    naive = ClippedSte(1.0).derivative(equivalent.weight_map(w), quantizer)
    assert not torch.equal(naive > 0, alive), (
        "negative control: an STE whose gradient ends at max freezes other weights"
    )


def walk(estimator, w: float, gradient: float, lr: float, steps: int) -> list[float]:
    """Weights of SGD with a gradient that changes its sign halfway."""
    weights = [torch.tensor([w], dtype=torch.float64)]
    for step in range(steps):
        current = torch.full_like(weights[-1], gradient if step < steps // 2 else -gradient)
        weights.append(weights[-1] - lr * estimator.backward(current, weights[-1], ONE_BIT))
    return torch.cat(weights)


def test_a_weight_that_approaches_the_end_of_approx_sign_returns_with_its_counterpart():
    equivalent = SteEquivalent(ApproxSign(), ONE_BIT)
    start = torch.tensor([0.1 * ONE_BIT.max.item()], dtype=torch.float64)
    errors = {}
    for steps in (1000, 5000):
        lr = 4 * ONE_BIT.max.item() / steps
        reference = walk(ApproxSign(), start.item(), -1.0, lr, steps)
        counterpart = walk(equivalent.counterpart(True), equivalent.weight_map(start).item(), -1.0, lr, steps)
        assert 0.97 < (reference.max() / ONE_BIT.max) < 1 < (counterpart.max() / ONE_BIT.max)
        errors[steps] = (equivalent.weight_map(reference) - counterpart).abs().max().item()
    assert errors[5000] < errors[1000] / 3


def test_a_step_beyond_the_end_of_approx_sign_separates_the_runs_for_good():
    """After too large a step the reference is frozen; the end of the counterpart's gradient is much further out."""
    equivalent = SteEquivalent(ApproxSign(), ONE_BIT)
    lr, start = 0.7 * ONE_BIT.max.item(), torch.tensor([0.5 * ONE_BIT.max.item()], dtype=torch.float64)
    reference = walk(ApproxSign(), start.item(), -1.0, lr, 10)
    counterpart = walk(equivalent.counterpart(True), equivalent.weight_map(start).item(), -1.0, lr, 10)
    assert reference[1] > ONE_BIT.max
    assert (reference[1:] == reference[1]).all()
    assert counterpart[10] == pytest.approx(counterpart[0])


@pytest.mark.parametrize("lr", [1e-2, 1e-3])
def test_reste_and_its_counterpart_freeze_beyond_t_within_two_steps_of_each_other(lr):
    equivalent = SteEquivalent(Reste(), ONE_BIT)
    start = torch.tensor([1.4 * ONE_BIT.max.item()], dtype=torch.float64)
    lr *= ONE_BIT.max.item()
    reference = walk(Reste(), start.item(), -1.0, lr, 2000)
    counterpart = walk(equivalent.counterpart(True), equivalent.weight_map(start).item(), -1.0, lr, 2000)
    ends = [(weights == weights[-1]).int().argmax().item() for weights in (reference, counterpart)]
    assert 0 < ends[0] < 1000, "frozen before the gradient changes its sign, and afterwards"
    assert abs(ends[0] - ends[1]) <= 2
    assert abs(equivalent.weight_map(reference)[-1] - counterpart[-1]) < 2 * lr

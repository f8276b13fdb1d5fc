from __future__ import annotations

import math

import pytest
import torch

from qat_ste import SteEquivalent, UniformQuantizer
from qat_ste.estimators import Estimator, Pwl, Ste, Tanh
from qat_ste.theory.numerics import inverse_integral
from tests.floats import around
from tests.theory import slow

SHARPNESS = {1: 2.0, 2: 5.5, 3: 9.0, 4: 18.0, 8: 250.0}
RANGES = {"per tensor": 0.144, "per channel": torch.tensor([0.05, 0.144, 0.3, 1.7]).reshape(4, 1)}


class Numeric(Tanh):
    """The tanh estimator without its closed form."""

    def integral(self, u, quantizer):
        return None


class Shape(Estimator):
    """Any g(u), for counter-examples."""

    def __init__(self, function):
        self.function = function

    def shape(self, u, quantizer):
        return self.function(u)

    def __repr__(self):
        return "Shape()"


@pytest.mark.parametrize(("bits", "k", "alpha"), [(1, 2, 0.530), (2, 5.5, 0.610), (2, 6.5, 0.454), (4, 18, 0.878)])
def test_alpha_of_the_paper(bits, k, alpha):
    pair = SteEquivalent(Tanh(k), UniformQuantizer(bits, 0.144))
    assert pair.lr_factor == pytest.approx(slow.tanh_alpha(bits, k), rel=1e-13)
    assert pair.lr_factor == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_the_harmonic_mean_of_g_and_tends_to_one():
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000 - 0.5
    quantizer = UniformQuantizer(2, 1.0)
    harmonic = 1 / (1 / Tanh(5.5).shape(u, quantizer)).mean().item()
    assert SteEquivalent(Tanh(5.5), quantizer).lr_factor == pytest.approx(harmonic, rel=1e-10)
    assert SteEquivalent(Tanh(1e-4), quantizer).lr_factor == pytest.approx(1, abs=1e-8)
    assert SteEquivalent(Ste(), quantizer).lr_factor == 1.0


@pytest.mark.parametrize("bits", SHARPNESS)
def test_weight_map_is_the_formula_of_the_paper(bits):
    quantizer = UniformQuantizer(bits, torch.tensor(0.144, dtype=torch.float64))
    w = torch.rand(500, dtype=torch.float64) * 0.4 - 0.2
    expected = [slow.tanh_map(x, bits, 0.144, SHARPNESS[bits]) for x in w.tolist()]
    found = SteEquivalent(Tanh(SHARPNESS[bits]), quantizer).weight_map(w)
    assert found.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("bits", SHARPNESS)
def test_numeric_alpha_and_map_agree_with_the_closed_form(bits):
    quantizer = UniformQuantizer(bits, torch.tensor(0.144, dtype=torch.float64))
    closed, numeric = (SteEquivalent(kind(SHARPNESS[bits]), quantizer) for kind in (Tanh, Numeric))
    assert numeric.lr_factor == pytest.approx(closed.lr_factor, rel=1e-10)
    w = torch.rand(100_000, dtype=torch.float64) * 0.4 - 0.2
    assert torch.allclose(numeric.weight_map(w), closed.weight_map(w), rtol=1e-10, atol=1e-12)


def test_numeric_integral_where_the_primitive_is_elementary():
    """Catalogue: g = 1 + a cos 2πu has α = √(1 - a²) and M = atan(√((1-a)/(1+a)) tan πu)/π; a kink: 1 + s|r|."""
    a, s = 0.6, 1.0
    u = torch.linspace(-0.499, 0.499, 999, dtype=torch.float64)
    cosine = inverse_integral(lambda u: 1 + a * torch.cos(2 * math.pi * u))
    alpha = math.sqrt(1 - a * a)
    assert torch.allclose(
        alpha * cosine(u),
        torch.atan(math.sqrt((1 - a) / (1 + a)) * torch.tan(math.pi * u)) / math.pi,
        rtol=1e-10,
        atol=1e-13,
    )
    tent = inverse_integral(lambda u: 1 + s * (0.5 - u.abs()))
    expected = u.sign() * torch.log((1 + s / 2) / (1 + s * (0.5 - u.abs()))) / s
    assert torch.allclose(tent(u), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("bits", SHARPNESS)
def test_no_weight_changes_its_level_under_the_map(bits, ranges):
    """Q(M(w)) = Q(w), bit for bit: every float32 near each threshold, and random draws."""
    quantizer = UniformQuantizer(bits, RANGES[ranges])
    pair = SteEquivalent(Tanh(SHARPNESS[bits]), quantizer)
    thresholds = quantizer.thresholds.reshape(2**bits - 1, -1).T.contiguous()
    near = around(thresholds)
    assert near.unique(dim=-1).shape[-1] >= 4000
    for w in (near, *(torch.randn(len(thresholds), 250_000 // len(thresholds)) * 0.2 for _ in range(4))):
        if ranges == "per tensor":
            w = w[0]
        quantized = quantizer(w)
        assert torch.equal(quantizer(pair.weight_map(w)), quantized)
    assert torch.equal(quantizer(pair.inverse(near)), quantizer(near))


def test_a_map_that_is_only_rounded_moves_levels():
    """Negative control: without the last look at the cell, rounding to float32 puts weights over a threshold."""
    quantizer = UniformQuantizer(2, 0.144)
    pair = SteEquivalent(Tanh(5.5), quantizer)
    w = around(quantizer.thresholds[None])[0]
    step = float(quantizer.step_in(torch.float32, w.device))
    position = w.double() / step
    offset = position - position.round()
    rounded = ((position.round() + pair.lr_factor * pair.estimator.integral(offset, quantizer)) * step).float()
    assert not torch.equal(quantizer(rounded), quantizer(w))


def test_map_is_increasing_and_fixes_thresholds_levels_and_everything_outside():
    quantizer = UniformQuantizer(3, 0.7)
    pair = SteEquivalent(Tanh(8.0), quantizer)
    w = torch.linspace(-1, 1, 10_001)
    mapped = pair.weight_map(w)
    assert (mapped.diff() >= 0).all()
    assert torch.equal(mapped[quantizer.saturated(w)], w[quantizer.saturated(w)])
    fixed = torch.cat([quantizer.thresholds, quantizer.levels])
    assert torch.allclose(pair.weight_map(fixed), fixed, rtol=1e-6, atol=1e-7)
    assert mapped.dtype == torch.float32
    assert pair.weight_map(w.double()).dtype == torch.float64


def test_inverse_undoes_the_map():
    quantizer = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64))
    for estimator in (Tanh(5.5), Numeric(5.5), Ste()):
        pair = SteEquivalent(estimator, quantizer)
        w = torch.rand(2000, dtype=torch.float64) * 0.4 - 0.2
        assert torch.allclose(pair.inverse(pair.weight_map(w)), w, rtol=1e-11, atol=1e-14)


def test_ste_maps_nothing():
    w = torch.randn(100_000)
    for saturation in ("range", "bin", "none"):
        pair = SteEquivalent(Ste(), UniformQuantizer(2, 0.5, saturation))
        assert torch.allclose(pair.weight_map(w), w, rtol=0, atol=1e-7)
        assert pair.lr_factor == 1


def test_assumptions_are_measured():
    known = SteEquivalent(Tanh(5.5), UniformQuantizer(2, 0.144)).assumptions
    g = [slow.tanh_g(w, 2, 1.0, 5.5) for w in (0.0, 1 / 3 - 1e-12)]
    assert known.upper == pytest.approx(g[0])
    assert known.lower == pytest.approx(g[1], rel=1e-6)
    e = 5.5 / 3  # |g'| is largest where sinh²(2eu) = 1/2: 2e · e·coth(e) · 4/(3√3)
    assert known.lipschitz == pytest.approx(2 * e * e / math.tanh(e) * 4 / (3 * math.sqrt(3)), rel=1e-3)
    assert known.even


def test_step_error_stays_under_the_bound_and_the_bound_is_not_idle():
    quantizer = UniformQuantizer(2, torch.tensor(1.0, dtype=torch.float64))
    pair = SteEquivalent(Tanh(5.5), quantizer)
    w = torch.rand(200_000, dtype=torch.float64) * 1.8 - 0.9
    gradient = torch.randn_like(w)
    for lr, difference in ((1e-2, 0.0), (1e-3, 0.0), (1e-3, 1e-3)):
        gradient_ste = gradient + difference * torch.randn_like(w)
        moved = w - lr * pair.estimator.derivative(w, quantizer) * gradient
        inside = ~quantizer.saturated(moved)
        ste = pair.weight_map(w) - pair.lr_factor * lr * gradient_ste
        error = (pair.weight_map(moved) - ste).abs()
        bound = pair.step_error_bound(lr, gradient, gradient_ste, quantizer.step)
        assert (error <= bound * (1 + 1e-9) + 1e-15)[inside].all()
        assert (error / bound)[inside].max() > 0.005

    lr = 1e-4  # negative control: without α the error is of first order in the learning rate, the bound of second
    moved = w - lr * pair.estimator.derivative(w, quantizer) * gradient
    wrong = (pair.weight_map(moved) - (pair.weight_map(w) - lr * gradient)).abs()
    assert (wrong > pair.step_error_bound(lr, gradient, gradient, quantizer.step)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("estimator", "saturation", "message"),
    [
        (Pwl(), "none", r"Pwl\(\) is not positive: g = 0 at w = -.*max .*, where saturation 'none' lets the gradient"),
        (Pwl(), "bin", r"is not positive: g = 0 at w = -1\.\d+·max"),
        (Shape(lambda u: 1 + torch.cos(2 * math.pi * u)), "range", r"is not positive: g = 0 at .*u = [-0]+\.5"),
        (Shape(lambda u: 0.3 - u.abs()), "none", "is not positive: g = -0.2"),
        (Shape(lambda u: 1 / u.abs()), "none", "is not bounded: g = .* at .*u = 0.0000"),
        (Shape(lambda u: 1 + u / 2), "range", "is not even in u, .* Use saturation 'bin' or 'none'"),
    ],
)
def test_refuses_what_the_theorem_cannot_cover(estimator, saturation, message):
    with pytest.raises(ValueError, match=message):
        SteEquivalent(estimator, UniformQuantizer(2, 0.144, saturation))


def test_refuses_g_that_differs_from_interval_to_interval_or_from_channel_to_channel():
    class Dorefa(Estimator):
        def shape(self, u, quantizer):
            return torch.ones_like(u)

        def derivative(self, w, quantizer):
            return 1 / torch.cosh(w) ** 2

    class InWeights(Estimator):
        def shape(self, u, quantizer):
            return 1 + (u * quantizer.step) ** 2

    with pytest.raises(ValueError, match="is not cyclical: g = .* in another interval"):
        SteEquivalent(Dorefa(), UniformQuantizer(2, 1.0))
    with pytest.raises(ValueError, match="has no single α: its shape depends on the width of the range"):
        SteEquivalent(InWeights(), UniformQuantizer(2, torch.tensor([1.0, 2.0])))


def test_a_jump_at_the_threshold_is_allowed_and_known():
    """Catalogue: the sine slope has α = √(1 - a²) and jumps from 1 + a to 1 - a at the threshold."""
    sine = Shape(lambda u: 1 + 0.5 * torch.sin(math.pi * torch.where(u < 0, u + 0.5, u - 0.5)))
    pair = SteEquivalent(sine, UniformQuantizer(2, 1.0, "bin"))
    assert pair.lr_factor == pytest.approx(math.sqrt(0.75), rel=1e-10)
    assert pair.assumptions.lipschitz == math.inf
    assert not pair.assumptions.even


def test_inverse_undoes_a_map_that_moves_the_levels():
    """g not even: M takes the cell of a level to one that reaches over the middle between two thresholds."""
    slanted = Shape(lambda u: 1 + u)
    for saturation in ("bin", "none"):
        pair = SteEquivalent(slanted, UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), saturation))
        w = torch.rand(2000, dtype=torch.float64) * 0.4 - 0.2
        assert not torch.allclose(pair.weight_map(pair.quantizer.levels), pair.quantizer.levels, rtol=1e-2)
        assert torch.allclose(pair.inverse(pair.weight_map(w)), w, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("at", [0.25, 0.3, 1 / 3])
def test_a_jump_inside_the_interval_is_no_breach_of_the_cycle(at):
    """On which side of the jump a weight falls is a matter of rounding, the same in no two intervals."""
    step = Shape(lambda u: torch.where(u.abs() < at, 1.0, 2.0).to(u))
    for max_ in (0.144, 1.0, 1 / 3):
        assert SteEquivalent(step, UniformQuantizer(4, max_)).assumptions.lipschitz == math.inf

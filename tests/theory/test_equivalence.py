"""α, weight map, error bound and assumptions, with the tanh of the paper."""

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
    """The tanh estimator without a closed form."""

    def integral(self, u, quantizer):
        return None


class Shape(Estimator):
    """Any g(u), for counterexamples."""

    def __init__(self, function):
        self.function = function

    def shape(self, u, quantizer):
        return self.function(u)

    def __repr__(self):
        return "Shape()"


@pytest.mark.parametrize(("bits", "k", "alpha"), [(1, 2, 0.530), (2, 5.5, 0.610), (2, 6.5, 0.454), (4, 18, 0.878)])
def test_alpha_follows_the_paper(bits, k, alpha):
    equivalent = SteEquivalent(Tanh(k), UniformQuantizer(bits, 0.144))
    assert equivalent.lr_factor == pytest.approx(slow.tanh_alpha(bits, k), rel=1e-13)
    assert equivalent.lr_factor == pytest.approx(alpha, abs=5e-4)


def test_alpha_is_the_harmonic_mean_of_g_and_tends_to_one():
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000 - 0.5
    quantizer = UniformQuantizer(2, 1.0)
    harmonic = 1 / (1 / Tanh(5.5).shape(u, quantizer)).mean().item()
    assert SteEquivalent(Tanh(5.5), quantizer).lr_factor == pytest.approx(harmonic, rel=1e-10)
    assert SteEquivalent(Tanh(1e-4), quantizer).lr_factor == pytest.approx(1, abs=1e-8)
    assert SteEquivalent(Ste(), quantizer).lr_factor == 1.0


@pytest.mark.parametrize("bits", SHARPNESS)
def test_weight_map_follows_the_formula_of_the_paper(bits):
    quantizer = UniformQuantizer(bits, torch.tensor(0.144, dtype=torch.float64))
    w = torch.rand(500, dtype=torch.float64) * 0.4 - 0.2
    expected = [slow.tanh_map(x, bits, 0.144, SHARPNESS[bits]) for x in w.tolist()]
    mapped = SteEquivalent(Tanh(SHARPNESS[bits]), quantizer).weight_map(w)
    assert mapped.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("bits", SHARPNESS)
def test_numeric_alpha_and_map_agree_with_the_closed_form(bits):
    quantizer = UniformQuantizer(bits, torch.tensor(0.144, dtype=torch.float64))
    closed, numeric = (SteEquivalent(kind(SHARPNESS[bits]), quantizer) for kind in (Tanh, Numeric))
    assert numeric.lr_factor == pytest.approx(closed.lr_factor, rel=1e-10)
    w = torch.rand(100_000, dtype=torch.float64) * 0.4 - 0.2
    assert torch.allclose(numeric.weight_map(w), closed.weight_map(w), rtol=1e-10, atol=1e-12)


def test_numeric_integral_agrees_with_elementary_primitives():
    """g = 1 + a cos 2πu has α = √(1 - a²) and M = atan(√((1-a)/(1+a)) tan πu)/π; 1 + s|r| has a kink."""
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
def test_the_map_changes_no_level(bits, ranges):
    """Q(M(w)) = Q(w), bit for bit, for every float32 near each threshold and for random weights."""
    quantizer = UniformQuantizer(bits, RANGES[ranges])
    equivalent = SteEquivalent(Tanh(SHARPNESS[bits]), quantizer)
    thresholds = quantizer.thresholds.reshape(2**bits - 1, -1).T.contiguous()
    near = around(thresholds)
    assert near.unique(dim=-1).shape[-1] >= 4000
    for w in (near, *(torch.randn(len(thresholds), 250_000 // len(thresholds)) * 0.2 for _ in range(4))):
        if ranges == "per tensor":
            w = w[0]
        quantized = quantizer(w)
        assert torch.equal(quantizer(equivalent.weight_map(w)), quantized)
    assert torch.equal(quantizer(equivalent.inverse(near)), quantizer(near))


def test_a_map_that_is_only_rounded_changes_levels():
    """Negative control: without the final correction, rounding to float32 moves weights over a threshold."""
    quantizer = UniformQuantizer(2, 0.144)
    equivalent = SteEquivalent(Tanh(5.5), quantizer)
    w = around(quantizer.thresholds[None])[0]
    step = float(quantizer.step_in(torch.float32, w.device))
    position = w.double() / step
    offset = position - position.round()
    rounded = (
        (position.round() + equivalent.lr_factor * equivalent.estimator.integral(offset, quantizer)) * step
    ).float()
    assert not torch.equal(quantizer(rounded), quantizer(w))


def test_map_increases_and_fixes_thresholds_levels_and_saturated_weights():
    quantizer = UniformQuantizer(3, 0.7)
    equivalent = SteEquivalent(Tanh(8.0), quantizer)
    w = torch.linspace(-1, 1, 10_001)
    mapped = equivalent.weight_map(w)
    assert (mapped.diff() >= 0).all()
    assert torch.equal(mapped[quantizer.saturated(w)], w[quantizer.saturated(w)])
    fixed = torch.cat([quantizer.thresholds, quantizer.levels])
    assert torch.allclose(equivalent.weight_map(fixed), fixed, rtol=1e-6, atol=1e-7)
    assert mapped.dtype == torch.float32
    assert equivalent.weight_map(w.double()).dtype == torch.float64


def test_inverse_reverses_the_map():
    quantizer = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64))
    for estimator in (Tanh(5.5), Numeric(5.5), Ste()):
        equivalent = SteEquivalent(estimator, quantizer)
        w = torch.rand(2000, dtype=torch.float64) * 0.4 - 0.2
        assert torch.allclose(equivalent.inverse(equivalent.weight_map(w)), w, rtol=1e-11, atol=1e-14)


def test_the_map_of_the_ste_is_the_identity():
    w = torch.randn(100_000)
    for saturation in ("range", "bin", "none"):
        equivalent = SteEquivalent(Ste(), UniformQuantizer(2, 0.5, saturation))
        assert torch.allclose(equivalent.weight_map(w), w, rtol=0, atol=1e-7)
        assert equivalent.lr_factor == 1


def test_assumptions_are_measured():
    assumptions = SteEquivalent(Tanh(5.5), UniformQuantizer(2, 0.144)).assumptions
    g = [slow.tanh_g(w, 2, 1.0, 5.5) for w in (0.0, 1 / 3 - 1e-12)]
    assert assumptions.upper == pytest.approx(g[0])
    assert assumptions.lower == pytest.approx(g[1], rel=1e-6)
    e = 5.5 / 3  # |g'| is largest where sinh²(2eu) = 1/2: 2e · e·coth(e) · 4/(3√3)
    assert assumptions.lipschitz == pytest.approx(2 * e * e / math.tanh(e) * 4 / (3 * math.sqrt(3)), rel=1e-3)
    assert assumptions.even


def test_step_error_stays_below_the_bound_and_comes_near_it():
    quantizer = UniformQuantizer(2, torch.tensor(1.0, dtype=torch.float64))
    equivalent = SteEquivalent(Tanh(5.5), quantizer)
    w = torch.rand(200_000, dtype=torch.float64) * 1.8 - 0.9
    gradient = torch.randn_like(w)
    for lr, difference in ((1e-2, 0.0), (1e-3, 0.0), (1e-3, 1e-3)):
        gradient_ste = gradient + difference * torch.randn_like(w)
        moved = w - lr * equivalent.estimator.derivative(w, quantizer) * gradient
        inside = ~quantizer.saturated(moved)
        ste = equivalent.weight_map(w) - equivalent.lr_factor * lr * gradient_ste
        error = (equivalent.weight_map(moved) - ste).abs()
        bound = equivalent.step_error_bound(lr, gradient, gradient_ste, quantizer.step)
        assert (error <= bound * (1 + 1e-9) + 1e-15)[inside].all()
        assert (error / bound)[inside].max() > 0.005

    lr = 1e-4  # negative control: without α, the error is of first order in the learning rate, the bound of second
    moved = w - lr * equivalent.estimator.derivative(w, quantizer) * gradient
    wrong = (equivalent.weight_map(moved) - (equivalent.weight_map(w) - lr * gradient)).abs()
    assert (wrong > equivalent.step_error_bound(lr, gradient, gradient, quantizer.step)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("estimator", "saturation", "message"),
    [
        (Pwl(), "none", r"Pwl\(\) is not positive: g = 0 at w = -.*max .*, where saturation 'none' lets the gradient"),
        (Pwl(), "bin", r"is not positive: g = 0 at w = -1\.\d+·max"),
        (Shape(lambda u: 1 + torch.cos(2 * math.pi * u)), "range", r"is not positive: g = 0 at .*u = [-0]+\.5"),
        (Shape(lambda u: 0.3 - u.abs()), "none", "is not positive: g = -0.2"),
        (Shape(lambda u: 1 / u.abs()), "none", "is not bounded: g = .* at .*u = 0.0000"),
        (
            Shape(lambda u: 1 + u / 2),
            "range",
            "is not even in u, .*, and the counterpart would freeze other weights. Use saturation 'bin' or 'none'",
        ),
    ],
)
def test_rejects_estimators_outside_the_theorem(estimator, saturation, message):
    with pytest.raises(ValueError, match=message):
        SteEquivalent(estimator, UniformQuantizer(2, 0.144, saturation))


def test_rejects_g_that_differs_between_intervals_or_channels():
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
    with pytest.raises(
        ValueError, match=r"has no single α: its shape depends on the width of the range \(g = 1.111 and 1.444"
    ):
        SteEquivalent(InWeights(), UniformQuantizer(2, torch.tensor([1.0, 2.0])))


def test_a_jump_at_the_threshold_is_allowed_and_detected():
    """The slope ``Acos`` has α = √(1 - a²) and jumps from 1 + a to 1 - a at the threshold."""
    sine = Shape(lambda u: 1 + 0.5 * torch.sin(math.pi * torch.where(u < 0, u + 0.5, u - 0.5)))
    equivalent = SteEquivalent(sine, UniformQuantizer(2, 1.0, "bin"))
    assert equivalent.lr_factor == pytest.approx(math.sqrt(0.75), rel=1e-10)
    assert equivalent.assumptions.lipschitz == math.inf
    assert not equivalent.assumptions.even


def test_inverse_reverses_a_map_that_moves_the_levels():
    """If g is not even, M shifts the interval between two levels."""
    slanted = Shape(lambda u: 1 + u)
    for saturation in ("bin", "none"):
        equivalent = SteEquivalent(slanted, UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), saturation))
        w = torch.rand(2000, dtype=torch.float64) * 0.4 - 0.2
        assert not torch.allclose(
            equivalent.weight_map(equivalent.quantizer.levels), equivalent.quantizer.levels, rtol=1e-2
        )
        assert torch.allclose(equivalent.inverse(equivalent.weight_map(w)), w, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("at", [0.25, 0.3, 1 / 3])
def test_g_with_a_jump_inside_the_interval_is_cyclical(at):
    """Rounding decides on which side of the jump a weight falls, and differs between intervals."""
    step = Shape(lambda u: torch.where(u.abs() < at, 1.0, 2.0).to(u))
    for max_ in (0.144, 1.0, 1 / 3):
        assert SteEquivalent(step, UniformQuantizer(4, max_)).assumptions.lipschitz == math.inf

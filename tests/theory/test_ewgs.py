"""EWGS: a factor and a map for each direction, one α, and the pull that prevents an equivalence."""

from __future__ import annotations

import math

import pytest
import torch
from mpmath import log, mpf, quad

from qat_ste import GridQuantizer, SteEquivalent, UniformQuantizer
from qat_ste.estimators import Ewgs, Ste

DELTAS = [0.2, 1.0, 1.9]
QUANTIZER = UniformQuantizer(2, torch.tensor(0.144, dtype=torch.float64), "none")


def alpha(delta: float) -> float:
    return delta / math.log((1 + delta / 2) / (1 - delta / 2))


def map_of(direction: int, delta: float, r: float) -> float:
    """M of decreasing (direction 1) or increasing (-1) weights in step sizes from the level; r is the distance from it."""
    return -0.5 + direction * alpha(delta) / delta * math.log((1 + direction * delta * r) / (1 - direction * delta / 2))


def mean_map(delta: float, r: torch.Tensor) -> torch.Tensor:
    """M around the level at Δ/2, in step sizes from the level."""
    step = QUANTIZER.step
    w = (0.5 + r) * step
    return SteEquivalent(Ewgs(delta), QUANTIZER).weight_map(w) / step - 0.5


@pytest.mark.parametrize("delta", DELTAS)
def test_both_directions_have_the_same_alpha_and_the_map_is_the_mean_of_theirs(delta):
    reciprocals = {direction: lambda r, d=direction: 1 / (1 + d * mpf(delta) * r) for direction in (1, -1)}
    for reciprocal in reciprocals.values():
        assert float(1 / quad(reciprocal, [-0.5, 0.5])) == pytest.approx(alpha(delta), rel=1e-14)
    assert SteEquivalent(Ewgs(delta), QUANTIZER).lr_factor == pytest.approx(alpha(delta), rel=1e-14)
    r = torch.linspace(-0.499, 0.499, 41, dtype=torch.float64)
    for x, mean in zip(r.tolist(), mean_map(delta, r).tolist(), strict=True):
        down, up = (map_of(direction, delta, x) for direction in (1, -1))
        assert down == pytest.approx(float(-0.5 + alpha(delta) * quad(reciprocals[1], [-0.5, x])), abs=1e-14)
        assert up == pytest.approx(float(-0.5 + alpha(delta) * quad(reciprocals[-1], [-0.5, x])), abs=1e-14)
        assert up < mean < down
        assert mean == pytest.approx((up + down) / 2, abs=1e-13)


def test_the_two_maps_differ_by_a_quarter_of_delta_at_a_level():
    for delta, tolerance in ((0.01, 1e-5), (0.2, 2e-3), (1.0, 0.07)):
        gap = map_of(1, delta, 0.0) - map_of(-1, delta, 0.0)
        assert gap == pytest.approx(delta / 4, rel=tolerance)
        assert gap == pytest.approx(float(-alpha(delta) / delta * log(1 - mpf(delta) ** 2 / 4)), rel=1e-12)
    assert mean_map(0.2, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15), (
        "levels stay in place"
    )


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("quantizer", [QUANTIZER, GridQuantizer("fp4_e2m1", 0.144)], ids=["uniform", "fp4"])
def test_it_is_the_ste_plus_a_pull_towards_the_level(delta, quantizer):
    w = torch.rand(2000, dtype=torch.float64) * 0.28 - 0.14
    gradient = torch.randn_like(w)
    result = Ewgs(delta).backward(gradient, w, quantizer)
    r = (w - quantizer(w)) / quantizer.interval(w)[2]
    assert torch.allclose(result, gradient * (1 + delta * gradient.sign() * r), rtol=1e-10, atol=1e-12)
    pull = -(result - Ste().backward(gradient, w, quantizer))  # the step is against the gradient
    assert ((pull > 0) == (quantizer(w) > w)).all(), "upwards if the level is above"
    assert torch.equal(result.sign(), gradient.sign()), "signSGD sees no difference"
    opposite = Ewgs(delta).backward(-gradient, w, quantizer)
    assert torch.allclose(result - gradient, opposite + gradient, rtol=1e-9, atol=1e-12), "for either sign of gradient"


def test_shape_is_the_harmonic_mean_of_both_directions():
    w = torch.rand(500, dtype=torch.float64) * 0.28 - 0.14
    one = torch.ones_like(w)
    down, up = Ewgs(0.7).backward(one, w, QUANTIZER), -Ewgs(0.7).backward(-one, w, QUANTIZER)
    assert not torch.allclose(down, up, rtol=0.1)
    assert torch.allclose(Ewgs(0.7).derivative(w, QUANTIZER), 2 / (1 / down + 1 / up), rtol=1e-12)


@pytest.mark.parametrize("saturation", ["range", "bin"])
def test_saturated_weights_get_no_gradient(saturation):
    quantizer = UniformQuantizer(2, 0.144, saturation)
    w = torch.linspace(-0.4, 0.4, 4001)
    assert torch.equal(Ewgs(0.2).backward(torch.ones_like(w), w, quantizer) != 0, quantizer.alive(w))


@pytest.mark.parametrize(("delta", "lr"), [(1.0, 0.02), (1.0, 0.005), (0.5, 0.02)])
def test_noise_gathers_weights_at_the_levels_more_with_smaller_steps(delta, lr):
    """Density of r ∝ exp(-δ·E|G|·r²/(η·E[G²])), lr = η in step sizes; the STE spreads the weights evenly."""
    quantizer = UniformQuantizer(2, 1.5, "none")  # step size 1
    expected = math.sqrt(lr / (2 * delta * math.sqrt(2 / math.pi))) * math.sqrt(2 / math.pi)
    for estimator, mean in ((Ewgs(delta), expected), (Ste(), 0.25)):
        w = torch.rand(4000)
        for _ in range(round(10 / (lr * delta))):
            w -= lr * estimator.backward(torch.randn(4000), w, quantizer)
        assert (w - w.floor() - 0.5).abs().mean().item() == pytest.approx(mean, rel=0.05)

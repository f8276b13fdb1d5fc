"""c(x) and the exact update against slow derivations in float64."""

from __future__ import annotations

import pytest
import torch

from qat_ste.estimators import Ste, Tanh
from qat_ste.quantizers.quantizer import UniformQuantizer
from qat_ste.quantizers.scales import MovingScale
from qat_ste.theory.equivalence import SteEquivalent
from qat_ste.theory.moving_scales import drift, follow_scale, reference_weights

SCALE = 0.7


def quantizer(scale: float, bits: int = 2) -> UniformQuantizer:
    return UniformQuantizer(bits, torch.tensor(scale, dtype=torch.float64))


@pytest.fixture
def w():
    generator = torch.Generator().manual_seed(3)
    return SCALE * (2 * torch.rand(4000, generator=generator, dtype=torch.float64) - 1)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_drift_is_the_derivative_of_the_map_by_the_scale(w, bits):
    pair = SteEquivalent(Tanh(5.5), quantizer(SCALE, bits))
    h = 1e-6
    higher, lower = (pair.on(quantizer(SCALE + d, bits)).weight_map(w) for d in (h, -h))
    inside = w.abs() < SCALE - 2 * h
    found = drift(pair, w, quantizer(SCALE, bits))
    torch.testing.assert_close(found[inside], ((higher - lower) / (2 * h))[inside], rtol=1e-4, atol=1e-6)
    assert found.abs().max() > 0.05, "M is far from proportional to the scale"


def test_without_a_map_nothing_drifts(w):
    assert drift(SteEquivalent(Ste(), quantizer(SCALE)), w, quantizer(SCALE)).abs().max() < 1e-12


def test_saturated_weights_do_not_drift():
    pair = SteEquivalent(Tanh(5.5), quantizer(SCALE))
    outside = torch.tensor([-2.0, -0.71, 0.71, 5.0], dtype=torch.float64)
    assert drift(pair, outside, quantizer(SCALE)).tolist() == [0.0] * 4


def error_of_a_step(eta: float, w: torch.Tensor, gradient: torch.Tensor, mirrored: bool) -> float:
    """|M(w⁺) - v⁺| after one SGD step whose scale follows the largest weight."""
    g = Tanh(5.5).derivative(w, quantizer(SCALE))
    w_next = w - eta * g * gradient
    scale_next = w_next.abs().max().item()
    now, then = quantizer(SCALE), quantizer(scale_next)
    pair = SteEquivalent(Tanh(5.5), now)
    v = pair.weight_map(w)
    dv = -eta * pair.lr_factor * gradient
    if not mirrored:
        return (pair.on(then).weight_map(w_next) - v - dv).abs().max().item()
    found, found_next = reference_weights(pair, v, dv, now)
    torch.testing.assert_close(found, w, rtol=0, atol=1e-8)
    torch.testing.assert_close(found_next, w_next, rtol=0, atol=1e-8)
    v_next = v + dv + follow_scale(pair, found, found_next, now, then)
    return (pair.on(then).weight_map(w_next) - v_next).abs().max().item()


@pytest.mark.parametrize(("sign", "moves"), [(1.0, "shrinks"), (-1.0, "grows")])
def test_the_update_is_right_to_second_order_and_the_ste_alone_to_the_first(w, sign, moves):
    w *= 0.9
    w[0] = SCALE  # by far the largest weight
    gradient = torch.randn(len(w), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gradient[0] = sign
    for mirrored, order in ((True, 4.0), (False, 2.0)):
        errors = [error_of_a_step(eta, w, gradient, mirrored) for eta in (4e-3, 2e-3)]
        assert errors[0] / errors[1] == pytest.approx(order, rel=0.2), (mirrored, errors)


def test_where_the_scale_stays_nothing_is_added(w):
    pair, same = SteEquivalent(Tanh(5.5), quantizer(SCALE)), quantizer(SCALE)
    assert not follow_scale(pair, w, w * 1.3, same, quantizer(SCALE)).any(), "not even for weights that leave the range"


ROWS = [[0.3, -0.9, 0.1, 0.0], [2.0, 3.0, -5.0, 0.5], [1e-4, -3e-4, 0.0, 2e-4]]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (MovingScale("absmax"), [0.9, 5.0, 3e-4]),
        (MovingScale("rms", 2.5), [2.5 * (sum(x * x for x in row) / 4) ** 0.5 for row in ROWS]),
        (MovingScale("msamp_power", largest=6.0), [1.5, 6.0, 6 * 2.0**-14]),  # 6/0.9 = 6.67: 2^2; 1.2: 2^0; 20000: 2^14
        (MovingScale("mx_power", largest=6.0), [6 * 2.0**-3, 6.0, 6 * 2.0**-14]),  # floor(log2): -1, 2, -12, less 2
    ],
)  # fmt: skip
def test_scales_of_rows(scale, expected):
    found = scale.now(torch.tensor(ROWS, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_row_that_becomes_zero_keeps_a_positive_scale():
    for scale in (MovingScale("absmax"), MovingScale("rms", 2.0), MovingScale("mx_power"), MovingScale("msamp_power")):
        assert (scale.now(torch.zeros(2, 3)) > 0).all()


def test_a_weight_on_the_end_of_the_range_keeps_its_gradient():
    """M(max) = max in exact arithmetic; rounded to beyond it, the weight would be frozen for good."""
    scales = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) + 1e-3
    ends = UniformQuantizer(2, scales)
    pair = SteEquivalent(Tanh(5.5), UniformQuantizer(2, 1.0)).on(ends)
    for w in (scales, -scales):
        assert ends.alive(w).all() and ends.alive(pair.weight_map(w)).all()
    assert not ends.alive(pair.weight_map(scales * 1.001)).any(), "what is outside stays there"

"""The tanh of the paper, the STE, and properties of all estimators."""

from __future__ import annotations

import math

import pytest
import torch

from qat_ste import UniformQuantizer
from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Estimator, Pwl, Ste, Tanh
from tests.theory import slow


@pytest.mark.parametrize(("bits", "k"), [(1, 2.0), (2, 5.5), (2, 6.5), (4, 18.0), (8, 300.0)])
def test_tanh_derivative_follows_the_formula_of_the_paper(bits, k):
    quantizer = UniformQuantizer(bits, torch.tensor(0.3, dtype=torch.float64))
    w = torch.rand(1000, dtype=torch.float64) * 0.8 - 0.4
    expected = [slow.tanh_g(x, bits, 0.3, k) for x in w.tolist()]
    assert Tanh(k).derivative(w, quantizer).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-300)
    single = Tanh(k).derivative(w.float(), UniformQuantizer(bits, 0.3)).double()
    assert torch.allclose(single, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("k", [0.01, 2.0, 5.5, 30.0])
def test_tanh_has_mean_one_over_an_interval(k):
    u = torch.linspace(-0.5, 0.5, 200_001, dtype=torch.float64)
    g = Tanh(k).shape(u, UniformQuantizer(2, 1.0))
    assert torch.trapezoid(g, u).item() == pytest.approx(1, abs=1e-6)


def test_a_sharp_tanh_stays_positive_in_float32():
    quantizer = UniformQuantizer(2, 1.0)
    assert (Tanh(60).derivative(quantizer.levels[1:3], quantizer) > 0).all()


@pytest.mark.parametrize("estimator", [Ste(), Tanh(5.5)])
def test_closed_form_is_the_integral_of_one_over_g(estimator):
    quantizer = UniformQuantizer(2, 1.0)
    u = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimator.integral(u, quantizer).sum(), u)
    assert torch.allclose(slope, 1 / estimator.shape(u.detach(), quantizer), rtol=1e-12)
    assert estimator.integral(torch.zeros(1, dtype=torch.float64), quantizer).item() == 0


def test_ste_is_one_where_the_gradient_passes_and_pwl_inside_the_range():
    w = torch.tensor([-2.0, -1.2, -1.0, 0.0, 1.0, 1.2, 2.0])
    for saturation, alive in {"range": [0, 0, 1, 1, 1, 0, 0], "bin": [0, 1, 1, 1, 1, 1, 0], "none": [1] * 7}.items():
        quantizer = UniformQuantizer(2, 1.0, saturation)
        assert Ste().derivative(w, quantizer).tolist() == alive
        assert Pwl().derivative(w, quantizer).tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("k", [0, -1, math.inf, math.nan, "sharp", None, True])
def test_tanh_rejects(k):
    with pytest.raises(ArgumentError) as error:
        Tanh(k)
    assert str(error.value) == f"k must be a positive finite number, got {k!r}"


def test_estimators_are_compared_by_value_and_show_their_arguments():
    assert Tanh(2) == Tanh(2.0) != Tanh(3)
    assert Ste() == Ste() != Pwl()
    assert len({Tanh(2), Tanh(2.0), Ste()}) == 2
    assert repr(Tanh(5.5)) == "Tanh(k=5.5)"
    assert repr(Ste()) == "Ste()"


def test_an_estimator_needs_one_method():
    class Parabola(Estimator):
        def shape(self, u, quantizer):
            return 1 - u * u

    quantizer = UniformQuantizer(2, 1.0)
    w = torch.tensor([0.0, 1 / 3, 2.0])
    assert Parabola().derivative(w, quantizer).tolist() == pytest.approx([1.0, 0.75, 0.0])


class Table(Estimator):
    def __init__(self, values, note=()):
        self.values, self.note = values, note

    def shape(self, u, quantizer):
        return self.values.mean() + 0 * u


def test_estimators_with_tensors_are_compared_by_their_elements():
    one, same, other = Table(torch.ones(4)), Table(torch.ones(4)), Table(torch.tensor([1.0, 1, 1, 2]))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != Table(torch.ones(5))
    assert one != Table(torch.ones(4, dtype=torch.float64))
    assert one != Table(None)
    assert Table(None, [torch.ones(2), {"a": torch.ones(2)}]) == Table(None, [torch.ones(2), {"a": torch.ones(2)}])
    assert Table(None, [torch.ones(2)]) != Table(None, [torch.zeros(2)])
    assert Table(torch.full((2,), float("nan"))) != Table(torch.full((2,), float("nan")))
    assert (shared := Table(torch.full((2,), float("nan")))) == shared

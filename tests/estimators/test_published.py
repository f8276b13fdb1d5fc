"""Published estimators of language models against their sources' numbers and formulas."""

from __future__ import annotations

import math

import pytest
import torch

from qat_ste import GridQuantizer, UniformQuantizer
from qat_ste.estimators import Dsq, Power, StableQat, Ste

# From the tests of Azure/MS-AMP (tests/operators/test_fp4_quantize.py): DGE at 20 points from -6 to 6, in bfloat16.
DGE = [0.2002, 0.4375, 0.6055, 0.2168, 1.8359, 0.2695, 0.3027, 0.2695, 0.2402, 0.5781]


def test_dge_has_the_20_published_values_in_bfloat16():
    w = torch.linspace(-6, 6, 20).to(torch.bfloat16)
    g = Power(k=5, cap=3).derivative(w.float(), GridQuantizer("fp4_e2m1", 6.0, ties="even"))
    assert torch.equal(g.to(torch.bfloat16), torch.tensor(DGE + DGE[::-1], dtype=torch.bfloat16))
    for other in (Power(k=4, cap=3), Power(k=5, cap=1.5)):
        changed = other.derivative(w.float(), GridQuantizer("fp4_e2m1", 6.0, ties="even"))
        assert not torch.equal(changed.to(torch.bfloat16), g.to(torch.bfloat16))


@pytest.mark.parametrize("estimator", [StableQat(), StableQat(amplitude=0.1), Dsq(), Dsq(alpha=0.4)], ids=repr)
def test_g_is_the_derivative_of_the_primitive(estimator):
    quantizer = UniformQuantizer(bits=2, max=1.5)
    u = torch.linspace(-0.49, 0.49, 99, dtype=torch.float64, requires_grad=True)
    estimator.primitive(u, quantizer).sum().backward()
    torch.testing.assert_close(u.grad, estimator.shape(u.detach(), quantizer), rtol=1e-9, atol=1e-12)


def test_stable_qat_as_its_paper_writes_it():
    """In v, the weight in steps, levels are whole numbers: g = (1 - S)/(1 + S), S = √2·π·A·cos π(v + round v)."""
    v = torch.linspace(-1.99, 1.99, 400, dtype=torch.float64)
    s = math.sqrt(2) * math.pi * 0.21 * torch.cos(math.pi * (v + v.round()))
    quantizer = GridQuantizer([-2, -1, 0, 1, 2], 2.0)
    torch.testing.assert_close(StableQat(0.21).derivative(v, quantizer), (1 - s) / (1 + s))


def test_dsq_as_its_paper_writes_it():
    """φ = s·tanh(k(x - m))/2 in each interval of a step, s = 1/(1 - α), k = ln(2/α - 1) (arXiv 1908.05033)."""
    alpha = 0.2
    u = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64, requires_grad=True)
    (torch.tanh(math.log(2 / alpha - 1) * u) / (1 - alpha) / 2).sum().backward()
    torch.testing.assert_close(u.grad, Dsq(alpha).shape(u.detach(), UniformQuantizer(2, 1.5)))


def test_quest_trusts_weights_up_to_half_a_step_from_their_level():
    quantizer = UniformQuantizer(bits=2, max=1.5, saturation="bin")
    w = torch.linspace(-3, 3, 601)
    trusted = (quantizer(w) - w).abs() <= 0.5
    assert torch.equal(Ste().derivative(w, quantizer).bool(), trusted)
    assert trusted.any() and not trusted.all()
    assert not torch.equal(Ste().derivative(w, UniformQuantizer(2, 1.5)).bool(), trusted), "range stops earlier"

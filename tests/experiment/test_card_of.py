"""The card of an estimator: its arrays against slow sums, its flags, and the STE run that it names."""

from __future__ import annotations

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import optim

from qat_ste import card_of, estimators
from qat_ste.estimators import Acos, Box, Cosine, Estimator, Power, Pwl, Scaled, SigmoidSum, StableQat, Ste, Tanh
from qat_ste.estimators.whole_line import SignOnly, WholeLine
from qat_ste.quantizers.grids import make_quantizer

SGD = partial(optim.SGD, momentum=0.9)
TWO_BITS = make_quantizer(0.144)


class Cauchy(SignOnly):
    """g = 1/(1 + x²)."""

    def of(self, x):
        return 1 / (1 + x * x)

    def integral_of(self, x):
        return x + x**3 / 3

    def primitive_of(self, x):
        return x.atan()


class Pole(Estimator):
    def shape(self, u, quantizer):
        return 1 / u.abs()


def held(card) -> dict[str, bool | None]:
    return {flag.name: flag.holds for flag in card.flags}


class NoClosedForm(Estimator):
    def shape(self, u, quantizer):
        return Tanh(5.5).shape(u, quantizer)


@pytest.mark.parametrize(
    ("estimator", "quantizer"),
    [
        (Tanh(5.5), TWO_BITS),
        (NoClosedForm(), TWO_BITS),
        (Tanh(2.0), make_quantizer(3.0, "bin", bits=1)),
        (Power(), make_quantizer(1.0, levels="fp4_e2m1")),
        (Box(1.5), make_quantizer(1.0, "none", levels="nf4")),
        (Acos(1.0), make_quantizer(1.0, "bin")),
        (Pwl(), make_quantizer(1.0, "none")),
        (Cauchy(), make_quantizer(0.5, bits=1)),
    ],
    ids=str,
)
def test_arrays_against_plain_sums(estimator, quantizer):
    card = card_of(estimator, quantizer, SGD, 3e-3)
    assert (np.diff(card.w) > 0).all()
    pieces = (card.g[1:] + card.g[:-1]) / 2 * np.diff(card.w)
    assert np.diff(card.soft) == pytest.approx(pieces, abs=2e-5)
    assert card.soft[-1] - card.soft[0] == pytest.approx(pieces.sum(), rel=2e-3)
    assert np.interp(0, card.w, card.soft) == pytest.approx(0, abs=1e-3)
    if card.mapped is not None:
        assert (np.searchsorted(card.thresholds, card.mapped) == np.searchsorted(card.thresholds, card.w)).all()
        slope = np.diff(card.mapped) / np.diff(card.w)
        smooth = (card.g[1:] > 0) & (np.abs(np.diff(card.g)) < 0.01) & (np.diff(card.w) > 1e-9)
        middle = (card.g[1:] + card.g[:-1]) / 2
        assert (slope * middle)[smooth] == pytest.approx(card.lr_factor, rel=1e-3)


def test_closed_form_and_sum_give_the_same_card():
    ours, theirs = (card_of(estimator, TWO_BITS, SGD, 3e-3) for estimator in (NoClosedForm(), Tanh(5.5)))
    assert ours.soft == pytest.approx(theirs.soft, abs=1e-5)
    assert ours.mapped == pytest.approx(theirs.mapped, abs=1e-9)
    assert (ours.largest_shift, ours.mean) == (
        pytest.approx(theirs.largest_shift),
        pytest.approx(theirs.mean, abs=1e-5),
    )


def test_numbers_of_the_default_run():
    card = card_of(Tanh(5.5), TWO_BITS, SGD, 3e-3)
    assert card.lr_factor == pytest.approx(0.6095, abs=5e-5)
    assert card.largest_shift == pytest.approx(0.158, abs=5e-4)
    assert card.mean == pytest.approx(1, abs=1e-9)
    assert card.sources == ("1908.05033", "2405.05171")
    assert card.definition == (Tanh.__doc__ or "").split("\n")[0]
    assert "Args" not in card.about and "k:" not in card.about
    e = 5.5 / 3
    assert card.lower == pytest.approx(e / math.tanh(e) / math.cosh(e) ** 2)
    assert card_of(StableQat(), TWO_BITS, SGD, 3e-3).mean == pytest.approx(0.302, abs=5e-4)
    assert card_of(Power(), TWO_BITS, SGD, 3e-3).mean == pytest.approx(0.593, abs=5e-4)


@pytest.mark.parametrize(
    ("estimator", "optimizer", "expected"),
    [
        (Tanh(5.5), SGD, "the STE at learning rate 0.6095 x 0.003 = 0.00183 from M(w0)"),
        (Scaled(0.5), SGD, "the STE at learning rate 0.5 x 0.003 = 0.0015 from the same weights"),
        (Ste(), SGD, "the STE at the same learning rate from the same weights"),
        (Tanh(5.5), optim.Adam, "the STE, nothing adjusted"),
        (Tanh(5.5), optim.Rprop, "the STE, nothing adjusted: the runs are identical"),
        (Tanh(5.5), optim.Adagrad, "no STE run: no adjustment is known"),
        (Cosine(1.0), SGD, "no STE run: no adjustment is known"),
        (Cosine(1.0), optim.Adam, "no STE run: no adjustment is known"),
    ],
)
def test_the_corresponding_ste_run(estimator, optimizer, expected):
    card = card_of(estimator, TWO_BITS, optimizer, 3e-3)
    assert card.ste_run == expected
    assert (card.mapped is None) == (card.lr_factor is None) == bool(card.refusal) == isinstance(estimator, Cosine)


class Different(Estimator):
    def shape(self, u, quantizer):
        return u * 0 + 1

    def derivative(self, w, quantizer):
        return (1 + w.abs()) * quantizer.alive(w)


@pytest.mark.parametrize(
    ("estimator", "saturation", "expected"),
    [
        (Tanh(5.5), "range", (True, True, True, True, True)),
        (Box(1.5), "range", (True, True, False, True, True)),
        (Acos(1.0), "bin", (True, True, False, True, False)),
        (Acos(1.0), "range", (True, True, None, True, False)),
        (Cosine(1.0), "range", (False, None, None, None, None)),
        (Pole(), "range", (None, False, None, None, None)),
        (Different(), "range", (True, True, None, False, None)),
    ],
    ids=str,
)
def test_flags(estimator, saturation, expected):
    card = card_of(estimator, make_quantizer(1.0, saturation), SGD, 3e-3)
    assert held(card) == dict(zip(("positive", "bounded", "Lipschitz", "cyclical", "even"), expected, strict=True))
    (failing,) = [flag for flag in card.flags if flag.holds is False and card.refusal] or [None]
    assert failing is None or failing.told == card.refusal


def test_the_refusal_names_the_offsets_at_which_g_is_not_positive():
    assert "g(u) <= 0 at |u| = 0.5" in card_of(Cosine(1.0), TWO_BITS, SGD, 3e-3).refusal
    assert "g(u) <= 0 for |u| > 0.36" in card_of(StableQat(0.25), TWO_BITS, SGD, 3e-3).refusal


def test_an_estimator_that_does_not_support_the_grid_is_refused():
    class OneBit(Ste):
        def derivative(self, w, quantizer):
            raise ValueError("one bit alone")

    with pytest.raises(ValueError, match="one bit alone"):
        card_of(OneBit(), TWO_BITS, SGD, 3e-3)


class NoQuantizer(Estimator):
    def shape(self, u):
        return 1 - u**2


class Constant(Estimator):
    def shape(self, u, quantizer):
        return 1.0


class WithParameter(Estimator):
    def __init__(self):
        self.k = torch.nn.Parameter(torch.tensor(1.0))

    def shape(self, u, quantizer):
        return 1 - self.k * u**2


class Failing(Estimator):
    def shape(self, u, quantizer):
        return 1 - self.k * u**2


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (NoQuantizer(), "NoQuantizer.shape must be a method with the arguments self, u and quantizer, got '(u)'"),
        (
            Constant(),
            "Constant.shape(u, quantizer) must be a tensor with a value for each of u (a constant is c + 0 * u), got 1.0",
        ),
        (
            WithParameter(),
            "WithParameter.shape(u, quantizer) must be a tensor without a gradient (use numbers, or detach() "
            "parameters), got tensor([0.9375, 1.0000, 0.9375], dtype=torch.float64, grad_fn=<RsubBackward1>)",
        ),
        (Failing(), "Failing.shape(u, quantizer) fails: AttributeError: 'Failing' object has no attribute 'k'"),
    ],
)
def test_a_wrong_shape_is_named_with_what_mends_it(estimator, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        card_of(estimator, TWO_BITS, SGD, 3e-3)


@pytest.mark.parametrize("name", [name for name in estimators.__all__ if name != "Estimator"])
def test_every_estimator_has_a_card_on_every_grid(name):
    for levels in (None, "ternary", "fp4_e2m1", "nf4"):
        try:
            card = card_of(getattr(estimators, name)(), make_quantizer(1.0, levels=levels), SGD, 3e-3)
        except ValueError:  # made for one bit
            card = card_of(getattr(estimators, name)(), make_quantizer(1.0, bits=1), SGD, 3e-3)
        assert np.isfinite(card.soft).all() and np.isfinite(card.mean)
        assert card.definition.startswith("g") or name == "Dsq" or card.definition


def test_a_function_of_the_whole_line():
    card = card_of(Cauchy(), make_quantizer(0.5, bits=1), SGD, 3e-3)
    assert (card.lr_factor, card.ste_run) == (1, "the STE at the same learning rate from M(w0)")
    assert card.largest_shift == pytest.approx(1 / 6), "at the end of the range, of which a step is twice max"
    assert card.mean == pytest.approx(math.pi / 4)
    assert card.mapped == pytest.approx(card.w + card.w**3 / 3)
    assert card.alive.all()
    assert held(card) == {"positive": True, "bounded": True, "Lipschitz": True, "cyclical": None, "even": True}
    with pytest.raises(ValueError, match="made for the two levels"):
        card_of(Cauchy(), TWO_BITS, SGD, 3e-3)


class Tail(WholeLine):
    """g = 1 inside the range and 1/|x| beyond it."""

    def shape(self, u, quantizer):
        return torch.ones_like(u)

    def of(self, x):
        return 1 / x.abs().clamp(min=1)

    def integral_of(self, x):
        return x.clamp(max=1) + (x.clamp(min=1) ** 2 - 1) / 2


def test_weights_that_are_moved_beyond_the_range_alone():
    card = card_of(Tail(), TWO_BITS, SGD, 3e-3)
    assert card.largest_shift == 0
    assert card.ste_run == "the STE at the same learning rate from M(w0)"


def test_many_levels_have_a_card_too():
    card = card_of(SigmoidSum(), make_quantizer(1.0, bits=8), SGD, 3e-3)
    assert card.mean == pytest.approx(1, abs=1e-6)

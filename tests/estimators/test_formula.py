"""Formulas: allowed and rejected text, the tanh written as a formula, formulas of the latent weight."""

from __future__ import annotations

import copy
import math
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_ste import SteEquivalent, UniformQuantizer
from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Cosine, Formula, Tanh
from qat_ste.estimators.expression import FUNCTIONS, evaluate

QUANTIZER = UniformQuantizer(2, 0.144)
ALLOWED = "; allowed are u, w, pi, parameters, numbers, + - * / ** ( ), abs sign sqrt "
TANH = "exp(abs(u) * (-4*e)) * (4*e/tanh(e)) / (exp(abs(u) * (-4*e)) + 1)**2"
SECH = "e/tanh(e)/cosh(2*e*u)**2"


def offsets(dtype: torch.dtype = torch.float64, points: int = 4097) -> torch.Tensor:
    return torch.linspace(-0.5, 0.5, points, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "k"), [(1, 2.0), (2, 5.5), (4, 18.0)])
def test_tanh_as_a_formula_equals_tanh_bit_for_bit(bits, k, dtype):
    quantizer, e = UniformQuantizer(bits, 0.144), {"e": k / (2**bits - 1)}
    u, w = offsets(dtype, 100_003), (torch.rand(100_003, dtype=dtype) - 0.5) * 0.4
    assert torch.equal(Formula(TANH, e).shape(u, quantizer), Tanh(k).shape(u, quantizer))
    assert torch.equal(Formula(TANH, e).derivative(w, quantizer), Tanh(k).derivative(w, quantizer))
    other = Formula(SECH, e).shape(u, quantizer)
    assert not torch.equal(other, Tanh(k).shape(u, quantizer)), "another order of operations rounds differently"
    assert torch.allclose(other, Tanh(k).shape(u, quantizer), rtol=1e-14 if dtype == torch.float64 else 1e-5, atol=0)


@pytest.mark.parametrize("expression", [TANH, SECH])
@pytest.mark.parametrize("k", [2.0, 5.5, 18.0])
def test_alpha_and_map_agree_with_the_closed_forms_of_tanh(expression, k):
    numeric, closed = SteEquivalent(Formula(expression, {"e": k / 3}), QUANTIZER), SteEquivalent(Tanh(k), QUANTIZER)
    assert numeric.lr_factor == pytest.approx(closed.lr_factor, rel=1e-10)
    w = (torch.rand(2000, dtype=torch.float64) - 0.5) * 0.3
    assert torch.allclose(numeric.weight_map(w), closed.weight_map(w), rtol=1e-10, atol=1e-12)
    other = SteEquivalent(Tanh(k * 1.001), QUANTIZER)
    assert numeric.lr_factor != pytest.approx(other.lr_factor, rel=1e-10)
    assert not torch.allclose(numeric.weight_map(w), other.weight_map(w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("expression", "slow"),
    [
        ("u", lambda u: u),
        ("1.5", lambda u: 1.5),
        ("where(u <= 0, 1, 2) - where(u < 0, 1, 2)", lambda u: -1.0 if u == 0 else 0.0),
        ("where(u >= 0, 1, 2) - where(u > 0, 1, 2)", lambda u: -1.0 if u == 0 else 0.0),
        ("2 - -u", lambda u: 2 + u),
        ("-u**2 + 2**-1", lambda u: -(u**2) + 0.5),
        ("1 - 2 - u", lambda u: (1 - 2) - u),
        ("8 / 2 / (u + 2)", lambda u: 4 / (u + 2)),
        ("2**3**u", lambda u: 2 ** (3**u)),
        ("abs(u) + sign(u)*2 + sign(-3) + abs(-2)", lambda u: abs(u) + ((u > 0) - (u < 0)) * 2 + 1),
        ("sqrt(u + 1) + exp(u) + log(u + 1)", lambda u: math.sqrt(u + 1) + math.exp(u) + math.log(u + 1)),
        ("sin(u) + cos(u) + tan(u) + atan(u)", lambda u: math.sin(u) + math.cos(u) + math.tan(u) + math.atan(u)),
        (
            "sinh(u) + cosh(u) + tanh(u) + erf(u) + erf(1)",
            lambda u: math.sinh(u) + math.cosh(u) + math.tanh(u) + math.erf(u) + math.erf(1),
        ),
        ("min(u, 0.1) + min(0.2, u) + min(u, -u) + min(1, 2)", lambda u: min(u, 0.1) + min(0.2, u) + min(u, -u) + 1),
        ("max(u, 0.1) + max(0.2, u) + max(u, -u) + max(1, 2)", lambda u: max(u, 0.1) + max(0.2, u) + max(u, -u) + 2),
        ("where(u < 0.1, 0.1, 2/3)", lambda u: 0.1 if u < 0.1 else 2 / 3),
        ("where(0.1 >= u, u, 1) + where(u > 0, 1, u)", lambda u: (u if u <= 0.1 else 1) + (1 if u > 0 else u)),
        ("where(1 <= 2, u, 7) + pi", lambda u: u + math.pi),
        ("where(abs(u) < 1e-6, 1, sin(u)/u)", lambda u: math.sin(u) / u if u else 1),
    ],
)
def test_evaluates_like_python(expression, slow):
    u = offsets(points=65).reshape(5, 13)
    before = u.clone()
    g = Formula(expression).shape(u, QUANTIZER)
    assert (g.shape, g.dtype) == (u.shape, u.dtype)
    assert g.flatten().tolist() == pytest.approx([slow(x) for x in u.flatten().tolist()], rel=1e-14, abs=1e-15)
    g.zero_()
    assert torch.equal(u, before), "g does not share memory with the argument"
    assert Formula(expression).shape(u.float(), QUANTIZER).dtype == torch.float32


REJECTED = {
    "__import__('os')": """character 12, "'": not allowed""",
    "__import__(1)": "character 1, '__import__(1)': unknown function",
    "(1).__class__": "character 1, '(1).__class__': not allowed",
    "u.__dict__": "character 1, 'u.__dict__': not allowed",
    "10**10**10": "character 1, '10**10**10': not a finite number",
    "1+" * 500_000 + "1": "must be a formula of at most 1000 characters, got '1+1+1+1+1+1+1+1+1+1…'",
    "1 + depth": "character 5, 'depth': unknown name; 'estimator.parameters={depth: 0.5}' gives it a value",
    "": "at the end: ",
    "1+": "at the end: ",
    "u if u else 1": "character 1, 'u if u else 1': not allowed",
    "[u]": "character 1, '[': not allowed",
    "lambda: 1": "character 7, ':': not allowed",
    "f'{u}'": """character 2, "'": not allowed""",
    "abs(x=u)": "character 1, 'abs(x=u)': not allowed",
    "abs(*u)": "character 5, '*u': not allowed",
    "abs(u, u)": "character 1, 'abs(u, u)': not allowed",
    "min(u)": "character 1, 'min(u)': not allowed",
    "True": "character 1, 'True': not allowed",
    "1j": "character 1, '1j': not allowed",
    "u // 2": "character 1, 'u // 2': not allowed",
    "1 + (u < 1)": "character 6, 'u < 1': not allowed",
    "1)+(2": "character 2, ')+(2': ",
    "(" * 900 + "u": "character 201, '(((((((((((((((((((…': too many nested parentheses",
    "-" * 900 + "u": "character 102, '-------------------…': nested too deeply",
    "where(u, 1, 2)": "character 1, 'where(u, 1, 2)': not allowed",
    "where(0 < u < 1, 1, 2)": "character 1, 'where(0 < u < 1, 1,…': not allowed",
    "(-1)**0.5": "character 1, '(-1)**0.5': not a finite number",
    "u + 1e999": "character 5, '1e999': not a finite number",
    "1/0": "character 1, '1/0': not a finite number",
    "9" * 400: "character 1, '9999999999999999999…': not a finite number",
    "été": "character 1, 'é': not allowed",
    "1\0": r"character 2, '\x00': not allowed",
    "1/u": "must be finite for u from -1/2 to 1/2, but is inf at u = 0 in float32 (cap it with ",
    "sin(u)/u": "must be finite for u from -1/2 to 1/2, but is nan at u = 0 in float32 (cap it with ",
    "sqrt(u)": "must be finite for u from -1/2 to 1/2, but is nan at u = -0.5 in float32 (cap it with ",
    "exp(200*u)": "must be finite for u from -1/2 to 1/2, but is inf at u = 0.4438 in float32 (cap it with ",
    "1e300": "must be finite for u from -1/2 to 1/2, but is inf at u = -0.5 in float32 (cap it with ",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REJECTED.items(), ids=[text[:20] for text in REJECTED])
def test_rejects(text, message):
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event) if event == "call" else None)
    try:
        with pytest.raises(ArgumentError) as error:
            Formula(text)
    finally:
        sys.setprofile(None)
    assert len(calls) < 100_000, "fast"
    syntax = not message.startswith("must be ")
    prefix = "expression must be a formula (" if syntax else "expression "
    assert str(error.value).startswith(prefix + message)
    assert len(str(error.value).splitlines()) == 1
    assert (ALLOWED in str(error.value)) is syntax


@pytest.mark.parametrize("value", [None, True, ["u"], {"u": 1}])
def test_rejects_values_that_are_no_text(value):
    with pytest.raises(ArgumentError, match="^expression must be a formula in u, as text, got "):
        Formula(value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"b": 1.0}, "numbers by names used in the expression (b is not)"),
        ({"pi": 3.0}, "numbers by name, without the reserved name pi"),
        ({"cos": 3.0}, "numbers by name, without the reserved name cos"),
        ({"a": "x"}, "finite numbers by name, such as {a: 0.5}"),
        ({"a": True}, "finite numbers by name, such as {a: 0.5}"),
        ({"a": math.nan}, "finite numbers by name, such as {a: 0.5}"),
        (0.5, "numbers by name, such as {a: 0.5}"),
    ],
)
def test_rejects_parameters(parameters, message):
    with pytest.raises(ArgumentError) as error:
        Formula("1 + a*cos(2*pi*u)", parameters)
    assert str(error.value) == f"parameters must be {message}, got {parameters!r}"


TOKENS = ["u", "w", "pi", "a", "1", "0", "2.5", "1e9", "1e-300", *FUNCTIONS, "where", "if", "(", ")", "((", "))", ",",
          "+", "-", "*", "/", "**", "<", ">=", "=", ".", "[", "'", ":", " ", "\n", "True", "_", "é"]  # fmt: skip
LEAVES = st.sampled_from(["u", "w", "pi", "2", "0.5", "-1", "1e200", "0"])
FORMULAS = st.recursive(
    LEAVES,
    lambda inner: st.tuples(
        st.sampled_from(
            [*(f"({{}}{sign}{{}})" for sign in ("+", "-", "*", "/", "**")), *(f"{name}({{}})" for name in FUNCTIONS),
             "min({}, {})", "max({}, {})", "where({} < {}, {}, {})"]
        ),
        *[inner] * 4,
    ).map(lambda drawn: drawn[0].format(*drawn[1:])),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(TOKENS)).map("".join), FORMULAS))
def test_any_text_is_rejected_in_one_line_or_gives_a_finite_tensor(text):
    try:
        formula = Formula(text)
    except ArgumentError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith("expression ")
        return
    for dtype in (torch.float32, torch.float64):
        u = offsets(dtype)
        g = formula.shape(u, UniformQuantizer(1, 1.0))  # w = 2u, as in the check
        assert (g.shape, g.dtype) == (u.shape, dtype)
        assert torch.isfinite(g).all()


def test_formulas_of_numbers_give_floats():
    assert evaluate("4*k/3", {"k": 5.5}) == 4.0 * 5.5 / 3.0
    assert evaluate("min(2, where(1 > 2, 3, 4)) - sign(0)", {}) == 2.0


def test_formulas_are_compared_by_value():
    one, same = (Formula("1 + a*cos(2*pi*u)", {"a": 0.5}) for _ in range(2))
    assert one == same == copy.deepcopy(one) == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(same)
    assert one != Formula("1 + a*cos(2*pi*u)", {"a": 0.4})
    assert repr(one) == "Formula('1 + a*cos(2*pi*u)', a=0.5)"
    assert len(repr(Formula("1" + " + u" * 90))) < 80
    assert Formula("1\n + u ") == Formula("1 + u"), "YAML allows several lines"
    assert Formula(1) == Formula("1")


def test_w_is_in_units_of_max():
    max_ = torch.tensor([[0.1], [0.3]])
    quantizer = UniformQuantizer(2, max_)
    formula = Formula("2 - w**2 + 0*u")
    w = torch.linspace(-0.4, 0.4, 801).expand(2, -1)
    expected = torch.where(w.abs() <= max_, 2 - (w / max_) ** 2, 0)
    assert torch.allclose(formula.derivative(w, quantizer), expected, atol=1e-5)
    u = offsets()
    assert torch.allclose(formula.shape(u, quantizer), 2 - (u * 2 / 3) ** 2), "around 0, where w is u step sizes"
    with pytest.raises(ValueError, match="is not cyclical: g = 1 at w = -1·max but 1.889 at the same offset"):
        SteEquivalent(formula, UniformQuantizer(2, 0.144))


def test_a_long_name_is_shortened_in_the_message():
    with pytest.raises(
        ArgumentError, match=r"'uuuuuuuuuuuuuuuuuuu…': unknown name; 'estimator.parameters=\{u{19}…: 0.5\}'"
    ):
        Formula("u" * 900)


def test_a_periodic_formula_of_w_has_the_alpha_of_the_same_g_of_u():
    equivalent = SteEquivalent(Formula("1 + 0.5*cos(2*pi*w*3/2)"), QUANTIZER)
    assert equivalent.lr_factor == pytest.approx(SteEquivalent(Cosine(0.5), QUANTIZER).lr_factor, rel=1e-10)


def test_a_formula_of_w_need_not_be_finite_outside_the_range():
    w = torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2])
    g = Formula("sqrt(1 - w**2)").derivative(w, QUANTIZER)
    assert g.tolist() == pytest.approx([0, math.sqrt(1 - (0.1 / 0.144) ** 2), 1, math.sqrt(1 - (0.1 / 0.144) ** 2), 0])

"""Reads formulas: arithmetic on numbers and tensors by a whitelist of Python's syntax trees; nothing is executed."""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

Value = float | Tensor

MAX_LENGTH = 1000
MAX_DEPTH = 100


def evaluate(text: str, names: Mapping[str, Value]) -> Value:
    """The value of a formula: a float if no tensor enters it, else a tensor of the dtype and shape of those that do.

    Operations are done in the order written, those of numbers alone as Python's floats.

    Raises:
        ValueError: it is no formula of what is allowed, or a part of it no finite number; says what and where.
    """
    return _value(_tree(text), names, text, depth=0)


@lru_cache
def names_in(text: str) -> frozenset[str]:
    """Names that a formula has, those of its functions included.

    Raises:
        ValueError: the text is no formula.
    """
    return frozenset(node.id for node in ast.walk(_tree(text)) if isinstance(node, ast.Name))


@lru_cache
def _tree(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"expression must have at most {MAX_LENGTH} characters, not {len(text)}")
    foreign = re.search(r"[^\w .+\-*/(),<>=]", text, re.ASCII)
    if foreign:
        raise _fault(text, foreign.start(), foreign.end(), "not allowed")
    try:
        with warnings.catch_warnings(action="error"):
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        at = error.offset - 1 if error.offset else len(text)  # 0 where it ends too early
        raise _fault(text, at, len(text), error.msg) from None
    except (RecursionError, MemoryError):
        raise _fault(text, 0, len(text), "nested too deep") from None


def _value(node: ast.expr, names: Mapping[str, Value], text: str, depth: int) -> Value:
    fault = partial(_fault, text, node.col_offset, node.end_col_offset)
    if depth > MAX_DEPTH:
        raise fault("nested too deep")
    match node:
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Name(name):
            raise fault(f"no such name, 'estimator.parameters={{{_short(name)}: 0.5}}' would give it a value")
        case ast.Call(ast.Name(name)) if name not in FUNCTIONS and name != "where":
            raise fault("no such function")
    operation, operands = _operation(node)
    if operation is None:
        raise fault("not allowed")
    values = [_value(operand, names, text, depth + 1) for operand in operands]
    try:
        value = operation(*values)
    except (ArithmeticError, ValueError, RuntimeError):  # the last is torch's
        raise fault("no finite number") from None
    if not isinstance(value, Tensor) and (isinstance(value, complex) or not math.isfinite(value)):
        raise fault("no finite number")
    return value


def _operation(node: ast.expr) -> tuple[Callable[..., Any] | None, list[ast.expr]]:
    """What is done at a node, and with what; None where it is not allowed."""
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return partial(float, number), []
        case ast.UnaryOp(ast.USub(), operand):
            return operator.neg, [operand]
        case ast.BinOp(left, sign, right):
            return OPERATORS.get(type(sign)), [left, right]
        case ast.Call(ast.Name("where"), [ast.Compare(left, [sign], [right]), if_true, if_false], []):
            compare = COMPARISONS.get(type(sign))
            return compare and partial(_where, compare), [left, right, if_true, if_false]
        case ast.Call(ast.Name("min" | "max" as name), [_, _] as arguments, []):
            return FUNCTIONS[name], arguments
        case ast.Call(ast.Name(name), [_] as arguments, []) if name not in ("where", "min", "max"):
            return FUNCTIONS[name], arguments
    return None, []


def _fault(text: str, start: int, end: int | None, what: str) -> ValueError:
    part = _short(text[start:end])
    where = f"character {start + 1}, {part!r}" if part else "its end"
    return ValueError(f"expression fails at {where}: {what}; allowed are {ALLOWED}")


def _short(part: str) -> str:
    return part if len(part) <= 20 else f"{part[:19]}…"


def _elementwise(name: str, x: Value) -> Value:
    return getattr(torch if isinstance(x, Tensor) else math, name)(x)


def _sign(x: Value) -> Value:
    return torch.sign(x) if isinstance(x, Tensor) else float((x > 0) - (x < 0))


def _extreme(name: str, x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return getattr(torch, f"{name}imum")(*_tensors(x, y))
    return min(x, y) if name == "min" else max(x, y)


def _where(compare: Callable[[Value, Value], Any], left: Value, right: Value, if_true: Value, if_false: Value) -> Value:
    condition = compare(left, right)
    if not isinstance(condition, Tensor):
        return if_true if condition else if_false
    *_, x, y = _tensors(left, right, if_true, if_false)
    return torch.where(condition, x, y)


def _tensors(*values: Value) -> list[Tensor]:
    """Numbers as tensors of the dtype of those that are; torch's own would have the default one."""
    like = next(value for value in values if isinstance(value, Tensor))
    return [value if isinstance(value, Tensor) else like.new_full((), value) for value in values]


OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISONS: dict[type, Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "sign": _sign,
    **{
        name: partial(_elementwise, name)
        for name in ("sqrt", "exp", "log", "sin", "cos", "tan", "atan", "sinh", "cosh", "tanh", "erf")
    },
    **{name: partial(_extreme, name) for name in ("min", "max")},
}
ALLOWED = (
    "u, w, pi, parameters, numbers, + - * / ** ( ), "
    f"{' '.join(name for name in FUNCTIONS if name not in ('min', 'max'))}, min(a, b), max(a, b), where(u < a, b, c)"
)

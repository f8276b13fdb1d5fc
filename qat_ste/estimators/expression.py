"""Evaluates formulas on numbers and tensors by walking whitelisted nodes of Python's syntax tree; executes no code."""

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

from qat_ste.base.errors import ArgumentError

Value = float | Tensor

MAX_LENGTH = 1000
MAX_DEPTH = 100


def evaluate(text: str, names: Mapping[str, Value]) -> Value:
    """Evaluates a formula: to a float if it contains no tensor, else to a tensor of its tensors' dtype and shape.

    Operations are done in the order written; those on numbers alone are done in Python's floats.

    Raises:
        ArgumentError: the text is not an allowed formula, or a subexpression is not finite; says what and where.
    """
    return _evaluate_node(_parse(text), names, text, depth=0)


@lru_cache
def names_in(text: str) -> frozenset[str]:
    """All names in a formula, including those of functions.

    Raises:
        ArgumentError: the text is not a formula.
    """
    return frozenset(node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name))


@lru_cache
def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise ArgumentError("expression", _shorten(text), f"a formula of at most {MAX_LENGTH} characters")
    forbidden = re.search(r"[^\w .+\-*/(),<>=]", text, re.ASCII)
    if forbidden:
        raise _error_at(text, forbidden.start(), forbidden.end(), "not allowed")
    try:
        with warnings.catch_warnings(action="error"):
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        start = error.offset - 1 if error.offset else len(text)  # 0 if the text ends too early
        raise _error_at(text, start, len(text), error.msg) from None
    except (RecursionError, MemoryError):
        raise _error_at(text, 0, len(text), "nested too deeply") from None


def _evaluate_node(node: ast.expr, names: Mapping[str, Value], text: str, depth: int) -> Value:
    error_here = partial(_error_at, text, node.col_offset, node.end_col_offset)
    if depth > MAX_DEPTH:
        raise error_here("nested too deeply")
    match node:
        case ast.Name(name) if name in names:
            return names[name]
        case ast.Name(name):
            raise error_here(f"unknown name; 'estimator.parameters={{{_shorten(name)}: 0.5}}' gives it a value")
        case ast.Call(ast.Name(name)) if name not in FUNCTIONS and name != "where":
            raise error_here("unknown function")
    operation, operands = _operation_and_operands(node)
    if operation is None:
        raise error_here("not allowed")
    values = [_evaluate_node(operand, names, text, depth + 1) for operand in operands]
    try:
        value = operation(*values)
    except (ArithmeticError, ValueError, RuntimeError):  # torch raises RuntimeError
        raise error_here("not a finite number") from None
    if not isinstance(value, Tensor) and (isinstance(value, complex) or not math.isfinite(value)):
        raise error_here("not a finite number")
    return value


def _operation_and_operands(node: ast.expr) -> tuple[Callable[..., Any] | None, list[ast.expr]]:
    """The operation of a node, or None if it is not allowed, and the nodes of its operands."""
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return partial(float, number), []
        case ast.UnaryOp(ast.USub(), operand):
            return operator.neg, [operand]
        case ast.BinOp(left, operator_node, right):
            return OPERATORS.get(type(operator_node)), [left, right]
        case ast.Call(ast.Name("where"), [ast.Compare(left, [operator_node], [right]), if_true, if_false], []):
            compare = COMPARISONS.get(type(operator_node))
            return compare and partial(_where, compare), [left, right, if_true, if_false]
        case ast.Call(ast.Name("min" | "max" as name), [_, _] as arguments, []):
            return FUNCTIONS[name], arguments
        case ast.Call(ast.Name(name), [_] as arguments, []) if name not in ("where", "min", "max"):
            return FUNCTIONS[name], arguments
    return None, []


def _error_at(text: str, start: int, end: int | None, problem: str) -> ArgumentError:
    excerpt = _shorten(text[start:end])
    where = f"character {start + 1}, {excerpt!r}" if excerpt else "at the end"
    return ArgumentError("expression", text, f"a formula ({where}: {problem}; allowed are {ALLOWED})")


def _shorten(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:19]}…"


def _elementwise(name: str, x: Value) -> Value:
    return getattr(torch if isinstance(x, Tensor) else math, name)(x)


def _sign(x: Value) -> Value:
    return torch.sign(x) if isinstance(x, Tensor) else float((x > 0) - (x < 0))


def _min_or_max(name: str, x: Value, y: Value) -> Value:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return getattr(torch, f"{name}imum")(*_as_tensors(x, y))
    return min(x, y) if name == "min" else max(x, y)


def _where(compare: Callable[[Value, Value], Any], left: Value, right: Value, if_true: Value, if_false: Value) -> Value:
    condition = compare(left, right)
    if not isinstance(condition, Tensor):
        return if_true if condition else if_false
    *_, x, y = _as_tensors(left, right, if_true, if_false)
    return torch.where(condition, x, y)


def _as_tensors(*values: Value) -> list[Tensor]:
    """Converts numbers to the dtype of the tensors among the values; torch would use the default dtype."""
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
    **{name: partial(_min_or_max, name) for name in ("min", "max")},
}
ALLOWED = (
    "u, w, pi, parameters, numbers, + - * / ** ( ), "
    f"{' '.join(name for name in FUNCTIONS if name not in ('min', 'max'))}, min(a, b), max(a, b), where(u < a, b, c)"
)

"""Inputs of strangers: formulas, and good files that are damaged or altered."""

from __future__ import annotations

import copy
import json
import random
import string
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

GOOD = (
    "1 + 0.5*cos(2*pi*u)", "1 - 8*u**4", "where(u < 0, 1 + u, 1 - u)", "min(4, 1/(0.1 + abs(u)))", "exp(-u*u) + w",
    "max(0.5, 1 - w*w) * erf(3*(u + 1)) + 1", "where(w >= 0.5, tanh(u) + 2, 1)", "sqrt(abs(u)) + atan(u) + sinh(1)",
)  # fmt: skip
ATTACKS = (
    "().__class__.__bases__[0].__subclasses__()", "__import__('os').system('touch hit')", "u.__class__", "u.data",
    "open(u)", "eval(u)", "exec(w)", "getattr(u, w)", "lambda: u", "[u for u in w]", "f(u)(w)", "(u := 1)",
    "u if w else 1",
    "globals()", "breakpoint()", "input(u)", "sin(u, out=w)", "sin(*u)", "where(u, 1, 2)", "where(u < w < 1, 1, 2)",
    "min()", "max(u)", "min(u, w, 1)", "u @ w", "u // w", "u % 2", "~u", "not u", "+u", "u and w", "await u", "yield u",
    "True", "None", "...", "1j", "0x10", "1_0", "1e999", "-1e999", "0**-1", "(-8)**0.5", "9**9**9**9**9", "2**-1e308",
    "1" * 999, "9" * 300 + "**" + "9" * 300, "(" * 400 + "u" + ")" * 400, "-" * 900 + "u", "u" + "**u" * 250,
    "sin(" * 200,
    "1+" * 400 + "u", "where(u<w," * 80, "", " ", "u\nw", "u;w", "u#w", "u=w", "\0", "\ud800", "ᵤ", "u" * 2000,
    "print(u)",
)  # fmt: skip
TOKENS = ("u", "w", "pi", "a", "0", "1", "2.5", "1e-300", "1e308", "1e309", "1e-7", "+", "-", "*", "/", "**", "(",
")", ",",
          "<", "<=", ">", ">=", "==", " ", "min(", "max(", "where(", "sin(", "exp(", "log(", "sqrt(", "erf(", "abs(",
          "tanh(", "sign(", "nope(", "__class__", ".", "lambda", "if", "else")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**18, 10**400, -(10**30), 1e-310, 1e300, -1e300, float("nan"), float("inf"), 0.5,
    "", "x",
    "a" * 300, "x" * 100_000, "<script>alert(1)</script>", "\\input{/etc/passwd}", "=cmd|' /C calc'!A0", "+1", "@x",
    "\x1b[31m\x07",
    "\ud800", "$\\frac{1}{0", "__x", "\n\n", [], {}, [[]], [1, "a", None], {"a": {"b": []}}, {"": None}, "done",
    "running", 2**63,
)  # fmt: skip


def formula(draw: random.Random) -> str:
    """Some would be good, most would not."""
    kind = draw.randrange(5)
    if kind == 0:
        return _grown(draw, draw.randrange(1, 9))
    if kind == 1:
        return "".join(draw.choices(TOKENS, k=draw.randrange(1, 40)))
    if kind == 2:
        return "".join(
            chr(draw.randrange(0x2500 if draw.random() < 0.9 else 0x10FFFF)) for _ in range(draw.randrange(60))
        )
    base = draw.choice(GOOD if kind == 3 else ATTACKS)
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(base) + 1)
        part = draw.choice((draw.choice(TOKENS), draw.choice(string.printable), draw.choice(ATTACKS), ""))
        base = base[:place] + part + base[place + draw.randrange(3) :]
    return base


def _grown(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.1:
        return draw.choice(
            ("u", "w", "pi", str(draw.randrange(20)), repr(10 ** draw.uniform(-320, 308)), "9" * draw.randrange(1, 400))
        )
    left, right = (_grown(draw, depth - 1) for _ in range(2))
    forms = ("({} + {})", "({} - {})", "({} * {})", "({} / {})", "({} ** {})", "min({}, {})", "max({}, {})",
             "where({} < {}, 1, u)", "-{}", "sin({})", "exp({})", "log({})", "sqrt({})", "tan({})",
             "sinh({})")  # fmt: skip
    return draw.choice(forms).format(left, right)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, doubled, or with something foreign in it."""
    data, kind = bytearray(content), draw.randrange(5)
    place = draw.randrange(len(data) + 1)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(draw.randrange(1, 20)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[place : place + draw.randrange(200)] = draw.randbytes(draw.randrange(200))
    elif kind == 3:
        other = draw.randrange(len(data) + 1)
        data[place:place] = data[other : other + draw.randrange(1, 2000)]
    else:
        data[place : place + 8] = draw.choice(
            (b"\0" * 8, b"\xff" * 8, b"[" * 5000, b'"', b"9" * 5000, b"{", b"NaN", b"1e999")
        )
    return bytes(data)


def altered(value: Any, draw: random.Random) -> str:
    """JSON whose structure is that of ``value`` but for some places."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randrange(1, 5)):
        places = list(_places(value))
        holder, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[
                draw.choice(
                    ("", "reference", "ste", "<b>", "=1+1", "n" * 150, "n" * 5000, "_x", "\\x", "$", "\ud800", "a.b")
                )
            ] = holder.pop(key)
        elif kind == 2:
            other, at = draw.choice(places)
            with suppress(RecursionError):
                holder[key] = copy.deepcopy(other[at])
        elif kind == 3 and draw.random() < 0.1:
            deep: Any = 1
            for _ in range(draw.choice((20, 40, 200))):
                deep = [deep] if draw.random() < 0.5 else {"a": deep}
            holder[key] = deep
        else:
            holder[key] = copy.deepcopy(draw.choice(VALUES))
    text = json.dumps(value)
    if draw.random() < 0.1 and isinstance(value, dict) and value:  # a key twice
        key = draw.choice(list(value))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw.choice(VALUES))}}}"
    return text


def _places(value: Any) -> Sequence[tuple[Any, Any]]:
    """(container, key) of everything within."""
    found, left = [], [value]
    while left:
        holder = left.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        found += [(holder, key) for key, _ in items]
        left += [inner for _, inner in items if isinstance(inner, dict | list) and inner]
    return found or [({"": None}, "")]

"""Estimators that are functions of x = w/max as in their sources: slow, readable reference."""

from __future__ import annotations

from mpmath import cosh, inf, mp, mpf, quad, sqrt, tanh

mp.dps = 25

VALUES: dict[str, list[tuple[float, ...]]] = {
    "ApproxSign": [()],
    "Ede": [(0.1,), (1.0,), (4.0,)],
    "Mad": [(0.9,), (1.0,), (2.5,)],
    "Rbnn": [(0.3,), (1.0,), (3.0,)],
    "Reste": [(1.0, 0.1, 1.5), (2.0, 0.3, 0.8), (3.0, 0.1, 1.5)],
    "SwishSign": [(2.0,), (5.0,), (10.0,)],
    "Xnor": [(576.0, 0.5), (9.0, 0.5), (27.0, 2.0)],
}


def approx_sign(x):
    if x < -1 or x >= 1:
        return mpf(0)
    return 2 + 2 * x if x < 0 else 2 - 2 * x


def k(t):
    return max(1 / t, mpf(1))


def reste(x, o, m, t):
    if abs(x) > t:
        return mpf(0)
    return m ** (1 / o) / m if abs(x) <= m else abs(x) ** ((1 - o) / o) / o


def swish_sign(x, beta):
    return beta * (2 - beta * x * tanh(beta * x / 2)) / (1 + cosh(beta * x))


G = {
    "ApproxSign": approx_sign,
    "Ede": lambda x, t: k(t) * t * (1 - tanh(t * x) ** 2),
    "Mad": lambda x, s: mpf(1) if abs(x) <= s else s / abs(x),
    "Rbnn": lambda x, t: max(mpf(0), k(t) * (2 * sqrt(t**2 / 2) - abs(t**2 * x))),
    "Reste": reste,
    "SwishSign": swish_sign,
    "Xnor": lambda x, n, c: 1 / n + (c if abs(x) <= 1 else 0),
}


def end(name: str, arguments: tuple):
    """|x| from which g = 0."""
    ends = {"ApproxSign": lambda: mpf(1), "Rbnn": lambda t: sqrt(2) / t, "Reste": lambda o, m, t: t}
    return ends[name](*arguments) if name in ends else inf


def kinks(name: str, arguments: tuple) -> list:
    """x > 0 at which g has a kink or a jump."""
    positions = {"Mad": lambda s: [s], "Reste": lambda o, m, t: [m], "Xnor": lambda n, c: [mpf(1)]}
    return positions[name](*arguments) if name in positions else []


def integral(name: str, arguments: tuple, x):
    """∫ ds/g(s) from 0 to x > 0 by quadrature."""
    return quad(lambda s: 1 / G[name](s, *arguments), [0, *(kink for kink in kinks(name, arguments) if kink < x), x])

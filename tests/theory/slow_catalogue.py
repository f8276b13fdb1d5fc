"""Estimators of the catalogue as in their sources, and their α: slow, readable reference in float64 or better."""

from __future__ import annotations

import math
from collections.abc import Callable

from mpmath import (
    asin,
    atan,
    atanh,
    cos,
    cosh,
    erf,
    erfi,
    exp,
    inf,
    log,
    mp,
    mpf,
    nint,
    nsum,
    pi,
    quad,
    sech,
    sin,
    sinh,
    sqrt,
    tanh,
)

mp.dps = 25
HALF = mpf(1) / 2

VALUES: dict[str, list[tuple[float, ...]]] = {
    "Scaled": [(0.5,), (1.0,), (3.0,)],
    "Tanh": [(2.0,), (5.5,), (18.0,)],
    "Dsq": [(0.05,), (0.2,), (0.4,)],
    "StackedSigmoid": [(1.0,), (4.0,), (10.0,)],
    "TanhFloor": [(1.0, 0.001), (20.0, 0.001), (3.0, 1e-12)],
    "Arctan": [(0.5,), (math.pi,), (20.0,)],
    "FastSigmoid": [(1.0,), (5.0,), (25.0,)],
    "Exp": [(1.0,), (5.0,), (20.0,)],
    "Laplace": [(0.05,), (0.3,), (1.0,)],
    "Gauss": [(0.5,), (3.0,), (6.0,)],
    "GaussSmooth": [(0.1,), (0.3,), (1.0,)],
    "SigmoidSum": [(2.0,), (10.0,), (20.0,)],
    "Cosine": [(-0.5,), (0.5,), (0.99,)],
    "StableQat": [(0.05,), (0.21,), (0.224,)],
    "Acos": [(0.5,), (1.0,), (-1.5,)],
    "Tent": [(0.5,), (1.0,), (-1.5,)],
    "Parabola": [(1.0, 1.0), (1.0, 3.0), (2.0, 0.5)],
    "Power": [(5.0, 3.0), (2.0, 100.0), (1.5, 0.4)],
    "Box": [(1.0,), (1.5,), (2.7,)],
    "Ewgs": [(0.2,), (1.0,), (1.9,)],
}


def from_level(u):
    """r: signed distance from the nearest level; the threshold belongs to the level above."""
    return u - HALF if u >= 0 else u + HALF


def sigmoid(x):
    return 1 / (1 + exp(-x))


def wave(u, characteristic: Callable):
    """Slope of the quantizer smoothed by noise: a Fourier series with the noise's characteristic function."""
    return 1 + 2 * sum(characteristic(2 * pi * n) * cos(2 * pi * n * u) for n in range(1, 60))


def stable_qat(u, amplitude):
    v = u + HALF  # levels at the whole numbers
    s = sqrt(2) * pi * amplitude * cos(pi * (v + (0 if u < 0 else 1)))
    return (1 - s) / (1 + s)


def tanh_slope(u, k):
    """Slope of a tanh of k·u that increases by 1 from u = -1/2 to 1/2."""
    return k * sech(k * u) ** 2 / (2 * tanh(k / 2))


G = {
    "Scaled": lambda u, c: c,
    "Tanh": lambda u, k: tanh_slope(u, 2 * k / 3),  # 2 bits: the range has 3 step sizes
    "Dsq": lambda u, alpha: log(2 / alpha - 1) / (2 * (1 - alpha)) * sech(log(2 / alpha - 1) * u) ** 2,
    "StackedSigmoid": lambda u, alpha: (
        alpha * sigmoid(alpha * u) * sigmoid(-alpha * u) / (sigmoid(alpha / 2) - sigmoid(-alpha / 2))
    ),
    "TanhFloor": lambda u, k, eps: 1 + eps - tanh(k * u) ** 2,
    "Arctan": lambda u, k: k / (2 * atan(k / 2)) / (1 + (k * u) ** 2),
    "FastSigmoid": lambda u, k: (1 + k / 2) / (1 + k * abs(u)) ** 2,
    "Exp": lambda u, k: k / 2 * exp(-k * abs(u)) / (1 - exp(-k / 2)),
    "Laplace": lambda u, b: nsum(lambda j: exp(-abs(u - j) / b) / (2 * b), [-inf, inf]),
    "Gauss": lambda u, k: k / (sqrt(pi) * erf(k / 2)) * exp(-((k * u) ** 2)),
    "GaussSmooth": lambda u, sigma: wave(u, lambda t: exp(-((sigma * t) ** 2) / 2)),
    "SigmoidSum": lambda u, temperature: wave(u, lambda t: (pi * t / temperature) / sinh(pi * t / temperature)),
    "Cosine": lambda u, a: 1 + a * cos(2 * pi * u),
    "StableQat": stable_qat,
    "Acos": lambda u, s: 1 + s / 2 * sin(pi * from_level(u)),
    "Tent": lambda u, s: 1 + s * abs(from_level(u)),
    "Parabola": lambda u, a, b: a - b * u**2,
    "Power": lambda u, k, cap: min(cap, abs(2 * u) ** (1 / k - 1) / k) if u else cap,
    "Ewgs": lambda u, delta: 2 / (1 / (1 + delta * from_level(u)) + 1 / (1 - delta * from_level(u))),
    "Box": lambda u, h: sum(abs(u - j) < h / 2 for j in range(-9, 10)) / h,
}


def power_alpha(k, cap):
    c = min(HALF, (k * cap) ** (-k / (k - 1)) / 2)
    return 1 / (2 * (c / cap + k**2 / (2 * (2 * k - 1)) * (1 - (2 * c) ** (2 - 1 / k))))


def box_alpha(h):
    d = abs(h / 2 - nint(h / 2))
    inner, outer = (h * G["Box"](u, h) for u in (d / 2, (d + HALF) / 2))
    return 1 / (2 * h * ((d / inner if d else 0) + ((HALF - d) / outer if d < HALF else 0)))


ALPHA = {
    "Scaled": lambda c: c,
    "Tanh": lambda k: 2 * (k / 3) ** 2 / tanh(k / 3) / (k / 3 + sinh(k / 3) * cosh(k / 3)),
    "TanhFloor": lambda k, eps: k * eps / (k - 2 * atanh(tanh(k / 2) / sqrt(1 + eps)) / sqrt(1 + eps)),
    "Arctan": lambda k: k / (2 * atan(k / 2) * (1 + k**2 / 12)),
    "FastSigmoid": lambda k: 3 * k * (1 + k / 2) / (2 * ((1 + k / 2) ** 3 - 1)),
    "Exp": lambda k: k / (2 * (1 - exp(-k / 2))) * k / (2 * (exp(k / 2) - 1)),
    "Laplace": lambda b: 1 / (4 * b**2 * sinh(1 / (2 * b)) * atan(sinh(1 / (2 * b)))),
    "Gauss": lambda k: k**2 / (pi * erf(k / 2) * erfi(k / 2)),
    "Cosine": lambda a: sqrt(1 - a**2),
    "StableQat": lambda amplitude: (
        1 / ((2 + 4 / pi * asin(sqrt(2) * pi * amplitude)) / cos(asin(sqrt(2) * pi * amplitude)) - 1)
    ),
    "Acos": lambda s: sqrt(1 - s**2 / 4),
    "Tent": lambda s: s / (2 * log(1 + s / 2)),
    "Parabola": lambda a, b: sqrt(a * b) / (2 * atanh(sqrt(b / a) / 2)),
    "Power": power_alpha,
    "Ewgs": lambda delta: delta / log((1 + delta / 2) / (1 - delta / 2)),
    "Box": box_alpha,
}


def kinks(name: str, arguments: tuple) -> list:
    """Offsets u > 0 inside the interval at which g has a kink or a jump."""
    if name == "Power":
        k, cap = arguments
        return [u for u in [(k * cap) ** (-k / (k - 1)) / 2] if u < HALF]
    if name == "Box":
        return [abs(arguments[0] / 2 - nint(arguments[0] / 2))]
    return []


def alpha(name: str, arguments: tuple):
    """Harmonic mean of g by quadrature."""
    inside = [u for u in kinks(name, arguments) if 0 < u < HALF]
    points = [-HALF, *(-u for u in inside), 0, *inside, HALF]
    return 1 / quad(lambda u: 1 / G[name](u, *arguments), points)

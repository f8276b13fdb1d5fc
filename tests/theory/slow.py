"""The formulas of arXiv 2405.05171, section 2: slow, readable reference in float64."""

from __future__ import annotations

import math


def levels(bits: int, max_: float) -> list[float]:
    step = 2 * max_ / (2**bits - 1)
    return [-max_ + j * step for j in range(2**bits)]


def thresholds(bits: int, max_: float) -> list[float]:
    step = 2 * max_ / (2**bits - 1)
    return [-max_ + (i + 0.5) * step for i in range(2**bits - 1)]


def quantize(w: float, bits: int, max_: float) -> float:
    return min(levels(bits, max_), key=lambda level: abs(level - w))


def nearest_threshold(w: float, bits: int, max_: float) -> float:
    return min(thresholds(bits, max_), key=lambda threshold: abs(threshold - w))


def tanh_g(w: float, bits: int, max_: float, k: float) -> float:
    if abs(w) > max_:
        return 0.0
    e = k / (2**bits - 1)
    u = k / max_ * (w - nearest_threshold(w, bits, max_))
    return e / math.tanh(e) / math.cosh(u) ** 2


def tanh_alpha(bits: int, k: float) -> float:
    e = k / (2**bits - 1)
    return 2 * e**2 / math.tanh(e) / (e + math.sinh(e) * math.cosh(e))


def tanh_map(w: float, bits: int, max_: float, k: float) -> float:
    if abs(w) > max_:
        return w
    e = k / (2**bits - 1)
    threshold = nearest_threshold(w, bits, max_)
    u = k / max_ * (w - threshold)
    step = 2 * max_ / (2**bits - 1)
    return threshold + step / 2 * (u + math.sinh(u) * math.cosh(u)) / (e + math.sinh(e) * math.cosh(e))

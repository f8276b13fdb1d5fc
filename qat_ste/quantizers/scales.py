"""Scales of grids: the factors on their levels."""

from __future__ import annotations

import math

from torch import Tensor, nn


def he_uniform_bound(w: Tensor) -> float:
    """Returns √(6 / fan_in), the end of the range in arXiv 2405.05171; for a bias, fan_in is its length."""
    fan_in = w.numel() if w.ndim == 1 else nn.init._calculate_fan_in_and_fan_out(w)[0]
    return math.sqrt(6 / fan_in)

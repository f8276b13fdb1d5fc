"""What is told of an estimator at a glance: plain numbers and arrays. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flag:
    """One assumption of arXiv 2405.05171: whether it holds (None: not looked at), and how well or where not."""

    name: str
    holds: bool | None
    told: str = ""


@dataclass(frozen=True)
class Card:
    """An estimator on a grid under an optimizer; weights in units of max, arrays of equal length along ``w``.

    ``g``, ``soft`` (∫ g dw, meeting the identity in the middle of the range) and ``mapped`` (M(w)) are sampled from
    half an interval below the range to half an interval above it, on both sides of thresholds and levels. What the
    theorem does not cover has a ``refusal`` in place of ``lr_factor`` (α), ``largest_shift`` (of |M(w) - w| inside the
    range, in widths of the weight's interval) and ``mapped``. ``lower`` and ``upper`` are L₋ and L₊, ``lipschitz`` is
    L' per width, ``mean`` that of g inside the range.
    """

    name: str
    definition: str
    about: str
    sources: tuple[str, ...]
    grid: str
    flags: tuple[Flag, ...]
    lower: float
    upper: float
    lipschitz: float | None
    mean: float
    lr_factor: float | None
    largest_shift: float | None
    refusal: str
    equivalence: str
    ste_run: str
    reason: str
    levels: np.ndarray
    thresholds: np.ndarray
    w: np.ndarray
    alive: np.ndarray
    g: np.ndarray
    soft: np.ndarray
    mapped: np.ndarray | None

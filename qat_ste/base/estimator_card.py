"""The card of an estimator: what the theorem says about it, as plain numbers and arrays. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flag:
    """One assumption of arXiv 2405.05171.

    Attributes:
        holds: None if it was not checked.
        told: the constant that belongs to the assumption, or where it fails.
    """

    name: str
    holds: bool | None
    told: str = ""


@dataclass(frozen=True)
class Card:
    """An estimator on a grid under an optimizer. Weights are in units of max; arrays have one value per ``w``.

    ``w`` ranges from half an interval below the range to half an interval above it, with points on both sides of each
    threshold and level.

    Attributes:
        lower, upper: L₋ and L₊, the bounds of g.
        lipschitz: L' for weights in steps; None if the theorem does not apply.
        mean: of g inside the range.
        lr_factor: α; None if the theorem does not apply.
        largest_shift: of |M(w) - w| inside the range, in steps (widths of the weight's interval); None likewise.
        refusal: why there are no α and M; empty if there are.
        not_covered: why the theorem does not cover an estimator that has α and M; empty if it does.
        ste_run: the STE run that corresponds to a run with the estimator.
        alive: whether the gradient passes.
        soft: ∫ g dw, equal to w in the middle of the range.
        mapped: M(w); None if the theorem does not apply.
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
    not_covered: str
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

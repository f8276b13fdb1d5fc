"""The paper's claims, each held against its bound by one test over seeds.

The test: of the logarithm of the ratio of two weight alignment errors, paired by seed, the mean over seeds with its
95 % confidence interval after Student. Where the whole interval keeps the bound the claim holds, where the whole
interval breaks it the claim does not hold, else, or with fewer than two seeds, the runs cannot say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qat_ste.report.seeds import interval_of_mean
from qat_ste.report.sweep.groups import ROWS, SCALEDOWN, Group

NEGLIGIBLE = 2.0  # the verdict's: two runs that differ by noise are as far apart
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot say"
ERROR = "weight_alignment_error"
TEST = (
    "Each claim is about a ratio of two weight alignment errors, paired by seed. Its test: the geometric mean of the "
    "ratio over seeds with a 95 % confidence interval (Student's t on the logarithms). The claim holds where the whole "
    "interval keeps the bound, does not hold where the whole interval breaks it; otherwise, or with fewer than two "
    "seeds, the runs cannot say. No correction for the number of claims."
)


@dataclass(frozen=True)
class Claim:
    """One claim for one row of a set-up.

    Args:
        published: what the paper says, in words.
        ratio: which two errors are compared, e.g. "default / jitter".
        bound: in words, e.g. "at most 2".
        value: geometric mean of the ratio over ``n`` seeds; None where there is no seed.
        low, high: the interval; None with fewer than two seeds.
        word: ``HOLDS``, ``FAILS`` or ``UNKNOWN``.
        note: what else a reader has to know, or "".
    """

    setup: str
    row: str
    kind: str
    published: str
    ratio: str
    bound: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    word: str
    note: str


def column_title(row: str, counterpart: str) -> str:
    """The paper's name of a counterpart of a row: "default", "jitter", "no-warp", "1 bit", "1 bit, jitter"."""
    name = {"naive": "no-warp"}.get(counterpart, counterpart)
    if row == "default":
        return "default" if counterpart == "ste" else name
    title = ROWS.get(row, row)
    return title if counterpart == "ste" else f"{title}, {name}"


def all_claims(groups: Sequence[Group]) -> list[Claim]:
    """Every claim that the groups can be held against, by set-up."""
    claims = []
    for _, members in groupby(groups, key=lambda group: group.setup):
        by_row = {group.row: group for group in members}
        for row, group in by_row.items():
            claims += _close_and_far(group)
            if "default" in by_row and row in SCALEDOWN:
                claims.append(_closer(group, by_row["default"]))
    return claims


def orders(claims: Sequence[Claim]) -> dict[str, str]:
    """How default, jitter and no-warp lie, by set-up: "default ≈ jitter < no-warp" is what the paper says."""
    by_kind = {(claim.setup, claim.kind): claim for claim in claims if claim.row == "default"}
    return {
        setup: _order(close, by_kind.get((setup, "far"))) for (setup, kind), close in by_kind.items() if kind == "close"
    }


def counted(claims: Sequence[Claim]) -> str:
    """The headline: how many hold."""
    numbers = {word: sum(claim.word == word for claim in claims) for word in (HOLDS, FAILS, UNKNOWN)}
    if not claims:
        return "No claim can be tested here: no run has the counterparts ste and jitter."
    if numbers[HOLDS] == len(claims):
        return "The claim holds." if len(claims) == 1 else f"All {len(claims)} claims hold."
    parts = [f"{numbers[HOLDS]} of {len(claims)} claims {'holds' if numbers[HOLDS] == 1 else 'hold'}"]
    if numbers[FAILS]:
        parts.append(f"{numbers[FAILS]} {'does' if numbers[FAILS] == 1 else 'do'} not hold")
    if numbers[UNKNOWN]:
        parts.append(f"of {numbers[UNKNOWN]} these runs cannot say")
    return ", ".join(parts) + "."


def _order(close: Claim, far: Claim | None) -> str:
    near = {
        HOLDS: "default ≈ jitter" if (close.value or 0) >= 1 / NEGLIGIBLE else "default < jitter",
        FAILS: "default > jitter",
        UNKNOWN: "default ≈ jitter: cannot say",
    }[close.word]
    if far is None:
        return near
    if (close.word, far.word) == (HOLDS, HOLDS) and (close.value or 0) * (far.value or 0) > 1:  # no-warp over jitter
        return f"{near} < no-warp"
    control = {HOLDS: "default < no-warp", FAILS: "no-warp not 2 times as far as default"}
    return f"{near}; {control.get(far.word, 'default < no-warp: cannot say')}"


def _close_and_far(group: Group) -> list[Claim]:
    ste, jitter, naive = (group.values(name, ERROR) for name in ("ste", "jitter", "naive"))
    adjusted = "with α and M" if group.remapped else "with nothing adjusted"
    bits = f", at {ROWS[group.row]} too" if group.row.startswith("bits_") and group.row in ROWS else ""
    titles = {name: column_title(group.row, name) for name in ("ste", "jitter", "naive")}
    claims = []
    if ste and jitter:
        published = f"{adjusted}, an STE ends about as close to the reference as jitter does, or closer{bits}"
        ratio = f"{titles['ste']} / {titles['jitter']}"
        claims.append(_claim(group, "close", published, ratio, (ste, jitter), ("at most", NEGLIGIBLE)))
    if ste and naive and group.remapped:
        published = f"without α and M (no-warp) it does not stay close{bits}"
        ratio = f"{titles['naive']} / {titles['ste']}"
        apart = max(ste.values()) < min(naive.values())
        note = f"the ranges over seeds {'do not overlap' if apart else 'overlap'}" if len(ste) > 1 else ""
        claims.append(_claim(group, "far", published, ratio, (naive, ste), ("at least", NEGLIGIBLE), note))
    return claims


def _closer(group: Group, default: Group) -> Claim:
    published = "agreement improves as the learning rate goes to 0"
    ratio = f"{column_title(group.row, 'ste')} / default"
    if group.row == "scaledown":
        note = (
            "trains 0.3 times as far as default (0.1 η, 3 × the epochs), so smaller steps are mixed with less training"
        )
    else:
        note = "trains as far as default (0.1 η, 10 × the epochs)"
    errors = (group.values("ste", ERROR), default.values("ste", ERROR))
    return _claim(group, "closer", published, ratio, errors, ("below", 1.0), note)


def _claim(
    group: Group,
    kind: str,
    published: str,
    ratio: str,
    errors: tuple[Mapping[int | None, float], Mapping[int | None, float]],
    bound: tuple[str, float],
    note: str = "",
) -> Claim:
    above, below = errors
    ratios = [above[seed] / below[seed] for seed in above if below.get(seed)]
    value, low, high = ratio_over_seeds(ratios)
    notes = [note]
    if len(ratios) < 2:
        notes.append("a test needs at least two seeds")
    elif low is None:
        notes.append("an error is exactly 0 for some seeds only")
    elif len(set(ratios)) == 1:
        notes.append("all seeds gave the same ratio")
    words = f"{bound[0]} {bound[1]:g}"
    notes = [note for note in notes if note]
    word = decide(low, high, *bound)
    return Claim(
        group.setup, group.row, kind, published, ratio, words, value, low, high, len(ratios), word, "; ".join(notes)
    )


def ratio_over_seeds(ratios: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Geometric mean with its 95 % interval; no interval for fewer than two, or where some but not all are 0."""
    if not ratios:
        return None, None, None
    if 0 in ratios:
        return (0.0, 0.0, 0.0) if not any(ratios) and len(ratios) > 1 else (0.0, None, None)
    logarithms = [math.log(ratio) for ratio in ratios]
    if len(ratios) == 1:
        return ratios[0], None, None
    value, low, high = interval_of_mean(logarithms)
    return math.exp(value), math.exp(low), math.exp(min(high, 700.0))


def decide(low: float | None, high: float | None, side: str, bound: float) -> str:
    """What an interval says of "at most", "below" or "at least" a bound."""
    if low is None or high is None:
        return UNKNOWN
    keeps = {"at most": high <= bound, "below": high < bound, "at least": low >= bound}[side]
    breaks = {"at most": low > bound, "below": low >= bound, "at least": high < bound}[side]
    return HOLDS if keeps else FAILS if breaks else UNKNOWN

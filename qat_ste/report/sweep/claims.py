"""Tests the paper's claims over seeds; ``TEST`` describes the test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qat_ste.report.seeds import interval_of_mean
from qat_ste.report.sweep.groups import ROWS, SCALEDOWN, Group

NEGLIGIBLE = 2.0  # as in the verdict: noise alone moves two runs this many times as far apart as jitter
HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
VERBS = {HOLDS: (HOLDS, "hold"), FAILS: (FAILS, "do not hold"), INCONCLUSIVE: ("is inconclusive", "are inconclusive")}
ERROR = "weight_alignment_error"
TEST = (
    "Each claim bounds the ratio of two weight alignment errors, paired by seed. Test: the geometric mean of the ratio "
    "over n seeds with its two-sided 95 % confidence interval (Student's t with n − 1 degrees of freedom, on the "
    "logarithms of the ratios). The claim holds if the whole interval satisfies the bound and does not hold if the "
    "whole interval violates it; otherwise, or with fewer than two seeds, it is inconclusive. No correction for the "
    "number of claims."
)


@dataclass(frozen=True)
class Claim:
    """One claim for one row of a set-up.

    Args:
        published: the paper's statement.
        ratio: the two errors compared, e.g. "ste / jitter" or "1 bit: ste / jitter".
        bound: e.g. "at most 2".
        value: geometric mean of the ratio over ``n`` seeds; None without a seed.
        low, high: 95 % confidence interval; None with fewer than two seeds.
        word: ``HOLDS``, ``FAILS`` or ``INCONCLUSIVE``.
        note: a remark on the data, or "".
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
    """Returns the counterpart with its row, except the default row: "ste", "jitter", "1 bit, ste"."""
    return counterpart if row == "default" else f"{ROWS.get(row, row)}, {counterpart}"


def all_claims(groups: Sequence[Group]) -> list[Claim]:
    """Tests every claim that the groups allow, by set-up."""
    claims = []
    for _, members in groupby(groups, key=lambda group: group.setup):
        by_row = {group.row: group for group in members}
        for row, group in by_row.items():
            claims += _close_and_far(group)
            if "default" in by_row and row in SCALEDOWN:
                claims.append(_closer(group, by_row["default"]))
    return claims


def orders(claims: Sequence[Claim]) -> dict[str, str]:
    """Orders the errors of ste, jitter and naive by set-up; the paper's order is "ste ≈ jitter < naive"."""
    by_kind = {(claim.setup, claim.kind): claim for claim in claims if claim.row == "default"}
    return {
        setup: _order(close, by_kind.get((setup, "far"))) for (setup, kind), close in by_kind.items() if kind == "close"
    }


def counted(claims: Sequence[Claim]) -> str:
    """Counts the claims that hold, do not hold and are inconclusive, in a sentence."""
    if not claims:
        return "No claim can be tested: no run has both counterparts, ste and jitter."
    outcomes = Counter(claim.word if claim.word in (HOLDS, FAILS) else INCONCLUSIVE for claim in claims)
    if len(outcomes) == 1:
        (verbs,) = (VERBS[word] for word in outcomes)
        total = {2: "Both"}.get(len(claims), f"All {len(claims)}")
        return f"The claim {verbs[0]}." if len(claims) == 1 else f"{total} claims {verbs[1]}."
    parts = [f"{outcomes[word]} {VERBS[word][outcomes[word] != 1]}" for word in (FAILS, INCONCLUSIVE) if outcomes[word]]
    return "; ".join([f"{outcomes[HOLDS]} of {len(claims)} claims {VERBS[HOLDS][outcomes[HOLDS] != 1]}", *parts]) + "."


def _order(close: Claim, far: Claim | None) -> str:
    near = {
        HOLDS: "ste ≈ jitter" if (close.value or 0) >= 1 / NEGLIGIBLE else "ste < jitter",
        FAILS: "ste > jitter",
    }.get(close.word, "ste vs jitter: inconclusive")
    if far is None:
        return near
    if (close.word, far.word) == (HOLDS, HOLDS) and (close.value or 0) * (far.value or 0) > 1:  # naive over jitter
        return f"{near} < naive"
    control = {HOLDS: "ste < naive", FAILS: f"naive less than {NEGLIGIBLE:g} × as far as ste"}
    return f"{near}; {control.get(far.word, 'ste vs naive: inconclusive')}"


def _close_and_far(group: Group) -> list[Claim]:
    ste, jitter, naive = (group.values(name, ERROR) for name in ("ste", "jitter", "naive"))
    adjusted = "with α and M" if group.remapped else "with nothing adjusted"
    bits = f", also at {ROWS[group.row]}" if group.row.startswith("bits_") and group.row in ROWS else ""
    row = "" if group.row == "default" else f"{ROWS.get(group.row, group.row)}: "
    claims = []
    if ste and jitter:
        published = f"{adjusted}, ste ends about as close to the reference as jitter, or closer{bits}"
        claims.append(_claim(group, "close", published, f"{row}ste / jitter", (ste, jitter), ("at most", NEGLIGIBLE)))
    if ste and naive and group.remapped:
        published = f"without α and M (naive), the STE does not stay close{bits}"
        apart = max(ste.values()) < min(naive.values())
        note = f"the ranges over seeds {'do not overlap' if apart else 'overlap'}" if len(ste) > 1 else ""
        claims.append(
            _claim(group, "far", published, f"{row}naive / ste", (naive, ste), ("at least", NEGLIGIBLE), note)
        )
    return claims


def _closer(group: Group, default: Group) -> Claim:
    published = "agreement improves as the learning rate goes to 0"
    ratio = f"ste: {ROWS[group.row]} / {ROWS['default']}"
    if group.row == "scaledown":
        note = "0.1 × the learning rate, 3 × the epochs: 0.3 × the training, so two effects are mixed"
    else:
        note = "0.1 × the learning rate, 10 × the epochs: the same amount of training"
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
    by_seed = {seed: above[seed] / below[seed] for seed in above if below.get(seed)}
    ratios = list(by_seed.values())
    value, low, high = ratio_over_seeds(ratios)
    notes = [note] if note else []
    if len(ratios) < 2:
        notes += [f"one run (seed {seed})" for seed in by_seed if seed is not None]
        notes.append("a test needs at least two seeds")
    elif low is None:
        notes.append("the error is exactly 0 for some of the seeds")
    elif len(set(ratios)) == 1:
        notes.append("all seeds have the same ratio")
    limit, word = f"{bound[0]} {bound[1]:g}", decide(low, high, *bound)
    return Claim(
        group.setup, group.row, kind, published, ratio, limit, value, low, high, len(ratios), word, "; ".join(notes)
    )


def ratio_over_seeds(ratios: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Returns geometric mean and 95 % interval; no interval for one ratio or if some but not all are 0."""
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
    """Decides if an interval lies on the required side ("at most", "below" or "at least") of a bound."""
    if low is None or high is None:
        return INCONCLUSIVE
    satisfied = {"at most": high <= bound, "below": high < bound, "at least": low >= bound}[side]
    violated = {"at most": low > bound, "below": low >= bound, "at least": high < bound}[side]
    return HOLDS if satisfied else FAILS if violated else INCONCLUSIVE

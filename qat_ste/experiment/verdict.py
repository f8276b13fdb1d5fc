"""Decides from the weight alignment errors of one run whether its estimator mattered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qat_ste.experiment.counterparts import jitter_percent

# Bounds on the error of ``ste`` over that of ``jitter``. Two runs that differ by noise alone may be NEGLIGIBLE times as
# far apart as a run and its jitter.
NEGLIGIBLE, SMALL = 2.0, 5.0
# Bounds on the error of ``ste`` over that of ``naive`` under "remap". The adjustment has to halve the error, or the
# claim fails; if it removes nine tenths, the estimator hardly mattered, however small the error of ``jitter`` is.
CREDITED_SHARE, EXPLAINED_SHARE = 0.5, 0.1
FEW_STEPS = 20  # shorter runs say little


@dataclass(frozen=True)
class Verdict:
    """Weight alignment errors over that of the jitter run whose change of learning rate is nearest to 1 %.

    Numbers are None where a run that they need is missing or did not diverge from the reference.

    Attributes:
        statement: one or more sentences about this run.
        ste_over_jitter, naive_over_jitter: ratios of errors.
        equivalent_lr_jitter: the change of learning rate, in per cent, that moves the weights as far as replacing the
            estimator by the STE did. It is interpolated between jitter runs. With one jitter run it is proportional
            to the error, which is too little where the error grows more slowly than the change.
        outcome: "did not matter", "hardly mattered", "mattered", "claim fails", "too sensitive" or "no verdict".
    """

    statement: str
    ste_over_jitter: float | None
    naive_over_jitter: float | None
    equivalent_lr_jitter: float | None
    outcome: str


def decide(
    errors: Mapping[str, float | None],
    equivalence: str,
    covered: bool = True,
    *,
    seed: int | None = None,
    breaks: Mapping[str, str] | None = None,
    steps: int | None = None,
    memory: str = "",
) -> Verdict:
    """Decides whether the estimator mattered in one run.

    Args:
        errors: weight alignment error of each counterpart, in path lengths; None where no weight moved.
        equivalence: "remap", "keep", "exact" or "none": what was adjusted for the STE.
        covered: whether the theorem covers the estimator.
        seed: of the run, for the statement.
        breaks: remedies by the setting that breaks the equivalence (docs/equivalence.md), in words, as
            "gradient clipping (train.clip_norm=1)".
        steps: length of the run; the statement warns where there are few.
        memory: why the claim for adaptive optimizers is not expected to hold; empty: it is.
    """
    ste, naive = errors.get("ste"), errors.get("naive")
    jitters = {percent: error for name, error in errors.items() if (percent := jitter_percent(name)) and error}
    yardstick = min(jitters, key=lambda percent: abs(math.log(percent)), default=None)
    unit = jitters[yardstick] if yardstick else None
    ste_ratio, naive_ratio = (error / unit if error is not None and unit else None for error in (ste, naive))
    percent = equivalent_jitter(ste, jitters)
    run = "In this run" if seed is None else f"In this run (seed {seed})"
    outcome = "no verdict"
    if ste is None:
        statement = "No verdict: the comparison has no counterpart 'ste' with weights that moved."
    elif ste == 0:
        outcome = "did not matter"
        statement = f"{run} the estimator did not matter at all: the STE run is the same run, bit for bit."
    elif ste_ratio is None or yardstick is None:
        statement = f"No verdict: without a 'jitter' run the alignment error {ste:.2g} cannot be judged."
    else:
        control = naive_ratio if equivalence == "remap" else None  # otherwise naive is the same run as ste
        outcome = _outcome(ste_ratio, control, covered)
        distance = f"{_times(ste_ratio)} as far from the reference as a {yardstick:g} % higher learning rate does"
        if len(jitters) > 1:
            distance += f" (like a change of {percent:.2g} %)"
        statement = f"{run} {_sentences(outcome, distance, ste_ratio, control, equivalence, breaks or {})}"
        if not covered:
            statement += " The theorem does not cover this estimator; the distance measured says how much that matters."
    statement += f" {memory}" if memory else ""
    if steps is not None and steps < FEW_STEPS:
        statement += f" So short a run ({steps} {'step' if steps == 1 else 'steps'}) says little."
    return Verdict(statement, ste_ratio, naive_ratio, percent, outcome)


def equivalent_jitter(error: float | None, jitters: Mapping[float, float]) -> float | None:
    """Returns the change of learning rate, in per cent, that gives this error.

    Between two jitter runs it is interpolated on logarithmic axes, outside them proportional to the nearest.

    Args:
        error: weight alignment error.
        jitters: weight alignment error of jitter runs, by their change in per cent.
    """
    if error is None or not jitters:
        return None
    if not error:
        return 0.0
    points = sorted((jitter_error, percent) for percent, jitter_error in jitters.items())
    below = [point for point in points if point[0] <= error]
    above = [point for point in points if point[0] > error]
    if not below or not above:
        jitter_error, percent = points[-1] if below else points[0]
        return percent * error / jitter_error
    (low_error, low), (high_error, high) = below[-1], above[0]
    share = math.log(error / low_error) / math.log(high_error / low_error)
    return low * (high / low) ** share


def _outcome(ste_ratio: float, control: float | None, covered: bool) -> str:
    if control is not None:
        if max(ste_ratio, control) <= NEGLIGIBLE:
            return "too sensitive"
        if covered and ste_ratio > CREDITED_SHARE * control:
            return "claim fails"
    if ste_ratio <= NEGLIGIBLE:
        return "did not matter"
    if ste_ratio <= SMALL or (control is not None and ste_ratio <= EXPLAINED_SHARE * control):
        return "hardly mattered"
    return "mattered"


def _sentences(
    outcome: str,
    distance: str,
    ste_ratio: float,
    control: float | None,
    equivalence: str,
    breaks: Mapping[str, str],
) -> str:
    """What follows "In this run"; ``control`` is the ratio of ``naive``, where the adjustment made a difference."""
    adjusted = {
        "remap": "the STE with adjusted learning rate and initial weights",
        "none": "the STE, for which no adjustment is known here,",
    }.get(equivalence, "the STE with nothing adjusted")
    ended = f"{adjusted} ended {distance}"
    unadjusted = "the STE swapped in without adjustment"
    if control is not None and outcome == "too sensitive":
        return (
            f"training is too sensitive to tell the two apart: {ended}, {unadjusted} {_times(control)} as far. "
            "A smaller learning rate may tell them apart."
        )
    if control is not None and outcome == "claim fails":
        closer = "farther than" if ste_ratio > control else "more than half as far as"
        text = f"the paper's claim fails: {ended}, {closer} {unadjusted} ({_times(control)} as far)."
        return f"{text} {_broken(breaks) or 'A smaller learning rate may help.'}"
    text = f"the estimator {outcome}: {ended}"
    text += f"; {unadjusted} {_times(control)} as far." if control is not None else "."
    return f"{text} {_broken(breaks)}".rstrip() if outcome == "mattered" else text


def _broken(breaks: Mapping[str, str]) -> str:
    if not breaks:
        return ""
    names, remedies = " and ".join(breaks), " ".join(dict.fromkeys(breaks.values()))
    verb = "break" if len(breaks) > 1 else "breaks"
    return (
        f"{names[0].upper()}{names[1:]} {verb} the equivalence: a distance remains that no smaller learning rate "
        f"removes. {remedies}"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"

"""Did the estimator matter? The numbers of a comparison in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qat_ste.experiment.counterparts import jitter_percent

# Where the verdict turns, in distances of the jitter run: up to the first the estimator "did not matter" (two runs that
# differ by noise are as far apart), beyond the second it "mattered".
NEGLIGIBLE, SMALL = 2.0, 5.0
# Under "remap" the adjustment must at least halve the distance of the naive swap to be credited with anything; where it
# leaves no more than a tenth, what was left of the estimator "hardly mattered" however small the yardstick.
CREDITED_SHARE, EXPLAINED_SHARE = 0.5, 0.1


@dataclass(frozen=True)
class Verdict:
    """Weight alignment errors in units of the yardstick: of the jitter run whose change is nearest to 1 %.

    ``equivalent_lr_jitter`` is the change of learning rate, in per cent, that moves the weights as far as exchanging
    the estimator for its STE counterpart did. With one jitter run it is scaled in proportion, which is too little where
    the distance grows more slowly than the change: ask for more than one to have it interpolated. Each is None
    where a run that it needs is missing or did not part from the reference.
    """

    statement: str
    ste_over_jitter: float | None
    naive_over_jitter: float | None
    equivalent_lr_jitter: float | None


def decide(errors: Mapping[str, float | None], equivalence: str, covered: bool = True) -> Verdict:
    """The verdict from the weight alignment errors of the counterparts, by name, and the adjustment made.

    ``covered``: whether the theorem speaks of the estimator.
    """
    ste, naive = errors.get("ste"), errors.get("naive")
    jitters = {percent: error for name, error in errors.items() if (percent := jitter_percent(name)) and error}
    yardstick = min(jitters, key=lambda percent: abs(math.log(percent)), default=None)
    unit = jitters[yardstick] if yardstick else None
    ste_ratio, naive_ratio = (error / unit if error is not None and unit else None for error in (ste, naive))
    percent = equivalent_jitter(ste, jitters)
    if ste is None:
        statement = "No verdict: the comparison has no counterpart 'ste' with weights that moved."
    elif ste == 0:
        statement = "The estimator did not matter at all: the STE run is the same run, bit for bit."
    elif ste_ratio is None or yardstick is None:
        statement = (
            f"No verdict: without a 'jitter' run there is nothing to hold the alignment error {ste:.2g} against."
        )
    else:
        interpolated = percent if len(jitters) > 1 else None
        statement = _statement(ste_ratio, naive_ratio, yardstick, interpolated, equivalence, covered)
        if not covered:
            statement += " The theorem does not cover this estimator; the distance measured says how much that matters."
    return Verdict(statement, ste_ratio, naive_ratio, percent)


def equivalent_jitter(error: float | None, jitters: Mapping[float, float]) -> float | None:
    """Change of learning rate in per cent that gives this error, from the errors of jitter runs by per cent.

    Between two runs by interpolation on logarithmic axes, outside them in proportion to the nearest.
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


def _statement(
    ste_ratio: float,
    naive_ratio: float | None,
    yardstick: float,
    percent: float | None,
    equivalence: str,
    covered: bool,
) -> str:
    adjusted = {
        "remap": "the STE with adjusted learning rate and initial weights",
        "none": "the STE, for which no adjustment is known here,",
    }.get(equivalence, "the STE with nothing adjusted")
    distance = f"{_times(ste_ratio)} as far from the reference as a {yardstick:g} % higher learning rate does"
    if percent is not None:
        distance += f" (like a change of {percent:.2g} %)"
    control = naive_ratio if equivalence == "remap" else None  # elsewhere it is the same run
    if control is not None and max(ste_ratio, control) <= NEGLIGIBLE:
        return (
            f"The estimator did not matter, nor did the adjustment: {adjusted} ended {distance}, swapped in without "
            f"adjustment {_times(control)} as far. Here so small a change already parts the weights about as far as "
            "they part at all; a smaller learning rate may tell more."
        )
    if covered and control is not None and ste_ratio > CREDITED_SHARE * control:
        return (
            f"The claim does not hold here: {adjusted} ended {distance}, hardly closer than the STE swapped in without "
            f"adjustment ({_times(control)} as far). A smaller learning rate may be within the theory's reach."
        )
    small = ste_ratio <= SMALL or (control is not None and ste_ratio <= EXPLAINED_SHARE * control)
    head = "did not matter" if ste_ratio <= NEGLIGIBLE else "hardly mattered" if small else "mattered"
    beside = f"; swapped in without adjustment, {_times(control)} as far" if control is not None else ""
    return f"The estimator {head}: {adjusted} ended {distance}{beside}."


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"

"""Did the estimator matter? The numbers of a comparison in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qat_ste.cohort import jitter_percent

# Where the verdict turns, in per cent of the learning rate: an exchange of estimators that moves the weights no
# further than the first "did not matter", beyond the second it "mattered". Learning rates are hardly tuned finer.
NEGLIGIBLE_PERCENT, SMALL_PERCENT = 2.0, 5.0
# Under "remap" the adjustment must at least halve the distance of the naive swap to be credited with anything.
CREDITED_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """``…_over_jitter``: distance over that of a 1 % change of learning rate; None where either is missing or 0.

    ``equivalent_lr_jitter``: the change of learning rate, in per cent, that moves the weights as far as exchanging
    the estimator for its STE counterpart did.
    """

    statement: str
    ste_over_jitter: float | None
    naive_over_jitter: float | None
    equivalent_lr_jitter: float | None


def decide(errors: Mapping[str, float | None], equivalence: str) -> Verdict:
    """The verdict from the weight alignment errors of the counterparts, by name, and the adjustment made."""
    ste, naive = errors.get("ste"), errors.get("naive")
    jitters = {percent: error for name, error in errors.items() if (percent := jitter_percent(name)) and error}
    percent = equivalent_jitter(ste, jitters)
    unit = error_of_one_percent(jitters)
    return Verdict(
        _statement(ste, naive, percent, equivalent_jitter(naive, jitters), equivalence),
        ste / unit if ste is not None and unit else None,
        naive / unit if naive is not None and unit else None,
        percent,
    )


def error_of_one_percent(jitters: Mapping[float, float]) -> float | None:
    """Error of the run with a 1 % change of learning rate; scaled from the nearest where there is none."""
    if not jitters:
        return None
    nearest = min(jitters, key=lambda percent: abs(math.log(percent)))
    return jitters[nearest] / nearest


def equivalent_jitter(error: float | None, jitters: Mapping[float, float]) -> float | None:
    """Change of learning rate in per cent that gives this error.

    Between two jitter runs by interpolation on logarithmic axes, outside them in proportion to the nearest.
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
    ste: float | None, naive: float | None, percent: float | None, naive_percent: float | None, equivalence: str
) -> str:
    if ste is None:
        return "No verdict: the comparison has no counterpart 'ste' with weights that moved."
    if ste == 0:
        return "The estimator did not matter at all: the STE run is the same run, bit for bit."
    if percent is None:
        return f"No verdict: without a 'jitter' run there is nothing to hold the alignment error {ste:.2g} against."
    like = f"as far as a {_percent(percent)} change of learning rate would"
    if equivalence == "remap":
        adjusted = "the STE with adjusted learning rate and initial weights"
    elif equivalence == "none":
        adjusted = "the STE, for which no adjustment is known with this optimizer,"
    else:
        adjusted = "the STE with nothing adjusted"
    against_naive = ""
    if equivalence == "remap" and naive and naive_percent is not None:
        if ste > CREDITED_SHARE * naive:
            return (
                f"The claim does not hold here: {adjusted} ended {like}, hardly closer than the STE swapped in as it "
                f"is ({_percent(naive_percent)}). A smaller learning rate may be within the theory's reach."
            )
        against_naive = (
            f" Swapped in without adjustment it ends {naive / ste:.2g} times as far ({_percent(naive_percent)})."
        )
    if percent <= NEGLIGIBLE_PERCENT:
        head = "The estimator did not matter"
    elif percent <= SMALL_PERCENT:
        head = "The estimator hardly mattered"
    else:
        head = "The estimator mattered"
    return f"{head}: {adjusted} ended {like}.{against_naive}"


def _percent(value: float) -> str:
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"

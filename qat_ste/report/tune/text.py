"""Words and numbers of a tuning study's page: headline, findings, warnings, rule, and the format of its metric."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from qat_ste.report.seeds import LEAST_SEEDS, Estimate, no_interval
from qat_ste.report.tables import short, with_interval
from qat_ste.report.tune.answers import ALPHA, BETTER, MOST_SEEDS, POWER, WORSE
from qat_ste.report.tune.comparison import LITTLE, Comparison, Difference, Row
from qat_ste.report.tune.study import STE, Study

MOST_DECIMALS = 8


@dataclass(frozen=True)
class Units:
    """Formats the metric and its differences: an accuracy in per cent and points, a loss in its unit.

    Attributes:
        metric: with its unit.
        difference: unit of a difference, after a space; empty if it has none.
        factor: that the numbers are multiplied by.
        decimals: two more than the first digit of the margin.
    """

    metric: str
    difference: str
    factor: int
    decimals: int

    def shown(self, value: float | None) -> str:
        """A metric."""
        return "–" if value is None else self._written(value, "")

    def signed(self, value: float | None) -> str:
        """A difference."""
        return "–" if value is None else "0" if value == 0 else self._written(value, "+")

    def _written(self, value: float, sign: str) -> str:
        scaled = value * self.factor
        text = f"{scaled:{sign}.{self.decimals}f}" if abs(scaled) < 1e5 else f"{scaled:{sign}.3g}"
        return text.replace("-", "−") if float(text) else text.lstrip("+-")


def units(comparison: Comparison) -> Units:
    """The units of a study."""
    accuracy = comparison.study.metric == "accuracy"
    unit = str(comparison.study.content.get("unit") or "")
    margin = (comparison.margin or 0) * (100 if accuracy else 1)
    decimals = min(max(2 - math.floor(math.log10(margin)), 0), MOST_DECIMALS) if margin else 4
    if accuracy:
        return Units("accuracy (%)", " points", 100, decimals)
    return Units(f"loss ({unit})" if unit else "loss", f" {unit}" if unit else "", 1, decimals)


def headline(comparison: Comparison) -> str:
    """The answers counted, number of seeds and margin."""
    study = comparison.study
    seeds, number = len(study.seeds), len(study.labels)
    counts = [f"{len(labels)} {answer}" for answer, labels in comparison.counts().items()]
    subject = "The one estimator" if number == 1 else f"Of {number} estimators"
    basis = f"{seeds} seeds" if seeds >= LEAST_SEEDS else no_interval(seeds)
    return (
        f"{subject}, each at its own best learning rate, compared with the STE at its best: {', '.join(counts)} "
        f"({basis}, margin {margin(comparison)})"
    )


def margin(comparison: Comparison) -> str:
    """The margin with its unit."""
    share = float(comparison.study.content["margin"])
    if comparison.study.metric == "accuracy":
        return f"{100 * share:g} {'point' if share == 0.01 else 'points'} of test accuracy"
    text = f"{100 * share:g} % of the STE's test loss"
    if comparison.margin is None:
        return text
    return f"{text}, {short(comparison.margin)}{units(comparison).difference}"


def findings(comparison: Comparison) -> list[str]:
    """Sentences on the best rates, careless swaps and adjusted STEs, where there are numbers."""
    sentences = []
    written = units(comparison)
    if distances := {label: abs(steps) for label, steps in comparison.distances().items()}:
        farthest = max(distances, key=lambda label: distances[label])
        remapped = " (multiplied by α)" if any(map(comparison.study.remapped, distances)) else ""
        sentences.append(
            f"Best learning rates{remapped}: in median {statistics.median(distances.values()):.1f} steps of the grid "
            f"from the STE's best rate, at most {distances[farthest]:.1f} ({farthest})"
        )
    costs = {row.label: row.swap.mean.mean for row in comparison.rows if row.swap.mean is not None}
    diverged = [row.label for row in comparison.rows if row.swap.diverged]
    if costs or diverged:
        sentences.append("The STE at an estimator's best rate: " + "; ".join(
            [f"loses at most {written.signed(cost).lstrip('+')}{written.difference} ({label})"
             for label, cost in sorted(costs.items(), key=lambda item: -item[1])[:1]]
            + [f"diverges at that of {', '.join(diverged)}"] * bool(diverged)
        ))  # fmt: skip
    if rows := comparison.adjusted():
        equivalent = sum(row.adjusted is not None and row.adjusted.equivalent for row in rows)
        sentences.append(f"Adjusted STE: equivalent to its estimator for {equivalent} of {len(rows)}")
    by_grid = [
        row.label
        for row in rows
        if row.answer in (BETTER, WORSE) and row.adjusted is not None and row.adjusted.equivalent
    ]
    if by_grid:
        sentences.append(
            f"Better or worse, but equivalent to the adjusted STE: {_names(by_grid)}; the difference comes from the "
            "grid, on which the STE's rates are not those of the estimator times α"
        )
    return sentences


def warnings(comparison: Comparison) -> list[str]:
    """What limits the answers: few seeds, missing runs, short grids, failed runs, a network that learned little."""
    study = comparison.study
    sentences = []
    if len(study.seeds) < LEAST_SEEDS:
        sentences.append(f"No answer can be given with fewer than {LEAST_SEEDS} seeds")
    if unsettled := [label for label, curve in study.curves.items() if not curve.settled]:
        sentences.append(
            f"The study is unfinished, its answers may change; training is missing for {_names(unsettled)}"
        )
    if added := {label: curve.added for label, curve in study.curves.items() if curve.added}:
        extended = [f"{label} by {number} {'rate' if number == 1 else 'rates'}" for label, number in added.items()]
        sentences.append(f"The grid was extended for {_names(extended)}")
    edges = [
        f"{label} ({rate_of(curve.best)})" for label, curve in study.curves.items() if curve.settled and curve.at_edge
    ]
    if edges:
        sentences.append(f"The best rate is still the smallest or largest one tried for {_names(edges)}")
    for label, curve in study.curves.items():
        if curve.faults:
            rates = [f"{rate_of(rate)} ({len(faults)} of {len(study.seeds)})" for rate, faults in curve.faults.items()]
            sentences.append(f"{label} failed at {_names(rates)} seeds; such rates cannot be chosen")
    accuracy = comparison.best_accuracy()
    if accuracy is not None and accuracy < LITTLE:
        sentences.append(
            f"The network learned little: the best test accuracy is {100 * accuracy:.1f} %. "
            "Answers about networks that learned little say little"
        )
    return sentences


def rule(comparison: Comparison) -> str:
    """Explains the choice of rates and the answers."""
    study = comparison.study
    number, metric = len(study.labels), study.metric
    percent = f"{100 * ALPHA:.0f} %"
    family = f"the {number} estimators" if number > 1 else "the one estimator"
    return (
        f"Choice: each estimator and the STE train at each learning rate with each seed. The validation split chooses: "
        f"the best rate has the best mean validation {metric} over seeds, among the rates at which no seed failed; of "
        f"equal rates it is the smallest. If the best rate is the smallest or largest one tried, a rate beyond it is "
        f"added, at most {study.extensions} for each. Comparison: the test {metric} of the estimator at its best rate "
        f"against that of the STE at its own, paired by seed; the test split takes no part in the choice. Positive "
        f"differences favour the estimator. Equivalent: the 90 % interval of the difference (Student's t) lies within "
        f"the margin of ±{margin(comparison)}, which is two one-sided t-tests at {percent}, for each estimator on its "
        f"own, without correction for their number. Better, worse: a two-sided paired t-test, with Holm's correction "
        f"over {family} (familywise {percent}). Equivalent takes precedence: a difference may be certain and still lie "
        f"within the margin; its interval shows it. Undecided: neither, or fewer than {LEAST_SEEDS} seeds. Seeds to "
        f"decide: the number that decides with {100 * POWER:.0f} % probability if mean and standard deviation stay as "
        f"estimated, for a difference (at Bonferroni's level) or for equivalence, whichever needs fewer. All "
        f"share one grid, so a difference may come from where its rates lie; the adjusted STE, at the estimator's rate "
        f"times α, is free of that. Intervals are 95 % unless stated otherwise, without correction. The intervals are "
        f"over seeds; the test split is the same for all seeds."
    )


def rate_of(rate: float | None) -> str:
    """A learning rate with three significant digits."""
    return "–" if rate is None else f"{rate:.3g}"


def p_of(p: float | None) -> str:
    """A p value with three decimals."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def seeds_of(seeds: int | None) -> str:
    """The number of seeds that would decide."""
    if seeds is None:
        return "–"
    return f"{seeds:,}" if seeds <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"


def distance_of(distance: float | None) -> str:
    """A distance with its sign."""
    if distance is None:
        return "–"
    text = f"{distance:+.1f}"
    return text.replace("-", "−") if float(text) else "0"


def difference_of(difference: Difference | None, written: Units, seeds: int) -> str:
    """Mean and 95 % interval of a difference, or in how many seeds training failed."""
    if difference is None:
        return "–"
    if difference.diverged:
        return f"diverged in {difference.diverged} of {seeds} seeds"
    estimate = difference.mean
    if estimate is not None and estimate.low == estimate.high == estimate.mean:
        estimate = Estimate(estimate.mean, None, None, estimate.n)
    return with_interval(estimate, written.signed)


def table(comparison: Comparison) -> list[list[str]]:
    """Header, the STE, and a line for each estimator."""
    written, seeds = units(comparison), len(comparison.study.seeds)
    unit = written.difference.strip()
    header = [
        "estimator", "answer", "best rate", "× α", f"test {written.metric}",
        f"difference to the STE{f' ({unit})' if unit else ''}", "Holm's p", "seeds to decide", "careless swap loses",
        "adjusted STE gains", "distance of best rates (steps)",
    ]  # fmt: skip
    ste = [STE, "–", rate_of(comparison.ste.best), "–", with_interval(comparison.ste_test(), written.shown), *["–"] * 6]
    return [header, ste, *(_line(row, written, seeds) for row in comparison.rows)]


def _line(row: Row, written: Units, seeds: int) -> list[str]:
    adjusted = difference_of(row.adjusted, written, seeds)
    if row.adjusted is not None and row.adjusted.equivalent:
        adjusted += ", equivalent"
    return [
        row.label, row.answer, rate_of(row.best), rate_of(row.counterpart), with_interval(row.test, written.shown),
        difference_of(row.difference, written, seeds), p_of(row.p), seeds_of(row.seeds),
        difference_of(row.swap, written, seeds), adjusted, distance_of(row.distance),
    ]  # fmt: skip


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def failures(study: Study) -> list[str]:
    """Every fault, with its estimator, rate and seed."""
    return [
        f"{cell['estimator']}{f' adjusted for {of}' if (of := cell.get('of')) else ''} at {rate_of(cell['lr'])}, seed "
        f"{cell['seed']}: {cell['fault']}"
        for cell in study.content["cells"]
        if cell["fault"]
    ]

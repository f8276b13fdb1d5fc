"""Words and numbers of a tuning study's page: headline, findings, warnings, rule, and the format of its metric."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from qat_ste.report.seeds import LEAST_SEEDS, Estimate, no_interval
from qat_ste.report.tables import short, with_interval
from qat_ste.report.tune.answers import ALPHA, BETTER, MOST_SEEDS, NO_NUMBERS, POWER, WORSE
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

    @property
    def in_brackets(self) -> str:
        """Unit of a difference in brackets, after a space; empty if it has none."""
        return f" ({self.difference.strip()})" if self.difference else ""

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
    study, counts = comparison.study, comparison.counts()
    seeds, number = len(study.seeds), len(study.labels)
    clauses = [_clause(answer, len(labels)) for answer, labels in counts.items()]
    if number == 1:
        clauses[0] = f"{study.labels[0]} {clauses[0].removeprefix('1 ')}"
    elif len(counts) == 1:
        clauses[0] = f"all {clauses[0].replace(' ', ' estimators ', 1)}"
    else:
        clauses[0] = clauses[0].replace(" ", f" of {number} estimators ", 1)
    basis = f"{seeds} seeds" if seeds >= LEAST_SEEDS else no_interval(seeds)
    sentence = " and ".join(filter(None, [", ".join(clauses[:-1]), clauses[-1]]))
    return f"Compared with the STE, each at its best learning rate, {sentence} ({basis}, margin: {margin(comparison)})"


def _clause(answer: str, number: int) -> str:
    """For example "2 are equivalent"."""
    if answer == NO_NUMBERS:
        return f"{number} {'has' if number == 1 else 'have'} {answer}"
    return f"{number} {'is' if number == 1 else 'are'} {answer}"


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
        rates = "rates times α" if any(map(comparison.study.remapped, distances)) else "learning rates"
        median = f" in the median, at most {distances[farthest]:.1f} ({farthest})" if len(distances) > 1 else ""
        vanishing = [row.label for row in comparison.rows if row.counterpart is not None and row.distance is None]
        without = f"; without {_names(vanishing)}, whose α is below single precision" if vanishing else ""
        sentences.append(
            f"Best {rates}: {statistics.median(distances.values()):.1f} steps of the grid from the STE's best "
            f"rate{median}{without}"
        )
    costs = {row.label: row.swap.mean.mean for row in comparison.rows if row.swap.mean is not None}
    diverged = [row.label for row in comparison.rows if row.swap.diverged]
    effects = []
    if costs:
        label, cost = max(costs.items(), key=lambda item: item[1])
        most = f"at most {written.shown(cost)}{written.difference} ({label})"
        effects.append(f"loses {most if cost > 0 else 'nothing'}")
    if diverged:
        effects.append(f"diverges at that of {_names(diverged)}")
    if effects:
        sentences.append(f"The STE at an estimator's best rate {' and '.join(effects)}")
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
    failed = [
        f"{label} at {rate_of(rate)} ({len(faults)} of {len(study.seeds)} seeds)"
        for label, curve in study.curves.items()
        for rate, faults in curve.faults.items()
    ]
    if failed:
        sentences.append(f"Training failed at rates that can therefore not be chosen: {_names(failed)}")
    accuracy = comparison.best_accuracy()
    if accuracy is not None and accuracy < LITTLE:
        sentences.append(
            f"The network learned little: the best test accuracy is {100 * accuracy:.1f} %. "
            "Answers about networks that learned little say little"
        )
    return sentences


def rule(comparison: Comparison) -> list[tuple[str, str]]:
    """Explains the choice of rates and the answers: terms with their explanations."""
    study = comparison.study
    number, metric = len(study.labels), study.metric
    percent = f"{100 * ALPHA:.0f} %"
    correction = f" after Holm's correction over the {number} estimators (familywise {percent})" if number > 1 else ""
    return [
        ("Choice", f"Each estimator and the STE train at each learning rate with each seed. The best rate has the best "
         f"mean validation {metric} over seeds, the smallest of equal ones. Rates at which a seed failed cannot be "
         f"chosen. If the best rate is the smallest or largest one tried, a rate beyond it is added, at most "
         f"{study.extensions} for each estimator."),
        ("Difference", f"Test {metric} of the estimator and of the STE, each at its own best rate, paired by seed. "
         f"Positive: the estimator is better. The test split takes no part in the choice."),
        ("Equivalent", f"The 90 % interval of the difference (Student's t) lies within the margin of "
         f"±{margin(comparison)}. These are two one-sided t-tests at {percent} for each estimator, without correction "
         f"for the number of estimators."),
        ("Better, worse", f"A two-sided paired t-test is significant at {percent}{correction}. Equivalent takes "
         f"precedence: a significant difference can lie within the margin."),
        ("Undecided", f"Neither, or fewer than {LEAST_SEEDS} seeds."),
        ("Seeds to decide", f"The number of seeds that decides with a probability of {100 * POWER:.0f} % if the true "
         f"mean and standard deviation are those measured: for a difference (at Bonferroni's level) or for "
         f"equivalence, whichever needs fewer."),
        ("Limits", "All estimators share one grid, so a difference may come from where its rates lie. The adjusted STE "
         "is free of that: it trains at the estimator's rate times α. Intervals have 95 % unless stated otherwise and "
         "are not corrected. They cover seeds only: the test split is the same for all seeds."),
    ]  # fmt: skip


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
    header = [
        "estimator", "answer", "best rate", "rate × α", f"test {written.metric}",
        f"difference to the STE{written.in_brackets}", "Holm's p", "seeds to decide",
        f"careless swap loses{written.in_brackets}", f"adjusted STE gains{written.in_brackets}",
        "distance of best rates (steps)",
    ]  # fmt: skip
    ste = [STE, "–", rate_of(comparison.ste.best), "–", with_interval(comparison.ste_test(), written.shown), *["–"] * 6]
    return [header, ste, *(_line(row, written, seeds) for row in comparison.rows)]


def paper_table(comparison: Comparison) -> list[list[str]]:
    """The columns of ``table`` that fit the width of an article's text, up to Holm's p and without α."""
    return [[cell.replace("difference to the STE", "difference") for cell in (*line[:3], *line[4:7])]
            for line in table(comparison)]  # fmt: skip


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

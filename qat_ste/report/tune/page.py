"""Writes the page of a tuning study and its tables as Markdown, LaTeX and CSV from ``tune.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from qat_ste.base.files import write
from qat_ste.report.files import no_link
from qat_ste.report.pages import Picture, draw_all, fill, with_pdf
from qat_ste.report.seeds import Estimate
from qat_ste.report.tune.answers import BETTER, EQUIVALENT, WORSE
from qat_ste.report.tune.comparison import Comparison
from qat_ste.report.tune.figures import curves, forest
from qat_ste.report.tune.study import STE, read_study
from qat_ste.report.tune.text import (
    difference_of,
    distance_of,
    failures,
    findings,
    headline,
    p_of,
    paper_table,
    rate_of,
    rule,
    seeds_of,
    table,
    units,
    warnings,
)
from qat_ste.report.writers import csv_lines, latex_table, markdown_lines, markdown_text

FIGURES: dict[str, tuple[Callable[[Comparison], Figure], str]] = {
    "tune_differences": (
        forest,
        "Test metric of each estimator at its best learning rate, compared with the STE at its own; right: the "
        "estimator is better. Dots: means over seeds; thick: 90 % intervals, thin: 95 % intervals. Band: the margin of "
        "equivalence. Arrows: beyond the axis.",
    ),
    "tune_curves": (
        curves,
        "Validation metric by learning rate, which chooses the best rate (dots). Lines: means over seeds; bands: "
        "smallest to largest seed. Black: the estimator; grey: the STE; dashed blue: the STE at its rate divided by α, "
        "which the theorem predicts to coincide with the estimator. ×: a seed failed. Lines leave the panel where the "
        "metric is far worse; an arrow points to a best value outside the panel.",
    ),
}


def write_study(folder: Path) -> dict[str, str]:
    """Writes ``tune.html``, ``.md``, ``.tex``, ``.csv``, ``tune_cells.csv`` and ``figures/``.

    Returns:
        What went wrong by figure.

    Raises:
        OSError, ValueError, KeyError: ``tune.json`` is unreadable, or qat-tune did not write it.
    """
    comparison = Comparison(read_study(folder / "tune.json"))
    no_link(folder / "figures").mkdir(exist_ok=True)
    plans = [
        (name, "", caption, partial(with_pdf, partial(draw, comparison), folder / "figures" / f"{name}.pdf"))
        for name, (draw, caption) in FIGURES.items()
    ]
    pictures, failed = draw_all(plans, folder / "figures")
    write(folder / "tune.csv", csv_lines(records(comparison)))
    write(folder / "tune_cells.csv", csv_lines(comparison.study.content["cells"]))
    write(folder / "tune.md", to_markdown(comparison))
    write(folder / "tune.tex", latex_table(paper_table(comparison), left=2, caption=headline(comparison)))
    write(folder / "tune.html", render(comparison, pictures))
    return failed


def render(comparison: Comparison, pictures: Sequence[Picture] = ()) -> str:
    """The page as HTML; every value is escaped."""
    study = comparison.study
    return fill(
        "tune/page.html",
        study=study,
        content=study.content,
        comparison=comparison,
        headline=headline(comparison),
        findings=findings(comparison),
        warnings=warnings(comparison),
        rule=rule(comparison),
        marks={EQUIVALENT: "same", BETTER: "better", WORSE: "worse"},
        failures=failures(study),
        pictures=pictures,
        units=units(comparison),
        rate_of=rate_of,
        p_of=p_of,
        seeds_of=seeds_of,
        distance_of=distance_of,
        difference_of=difference_of,
        settings=json.dumps(study.content["settings"], indent=1),
    )


def to_markdown(comparison: Comparison) -> str:
    """Headline, findings, warnings, a line for each estimator, and the rule."""
    sentences = [*findings(comparison), *(f"Warning: {warning}" for warning in warnings(comparison))]
    items = "".join(f"- {markdown_text(sentence)}.\n" for sentence in sentences)
    terms = "".join(f"- **{term}.** {markdown_text(explanation)}\n" for term, explanation in rule(comparison))
    return f"{markdown_text(headline(comparison))}.\n\n{items}\n{markdown_lines(table(comparison), left=2)}\n\n{terms}"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """The table with all digits: a record for each estimator, in the metric's own unit."""

    def interval(name: str, estimate: Estimate | None) -> dict[str, float | None]:
        if estimate is None:
            return {name: None, f"{name}_low": None, f"{name}_high": None}
        return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}

    return [
        {"estimator": row.label, "answer": row.answer, "best_rate": row.best, "alpha_times_best_rate": row.counterpart,
         f"best_rate_{STE}": comparison.ste.best, "distance_of_best_rates": row.distance}
        | interval("test", row.test)
        | interval(f"test_{STE}", comparison.ste_test())
        | interval("difference", row.difference.mean)
        | {"margin": comparison.margin, "holm_p": row.p, "seeds_to_decide": row.seeds}
        | interval("swap_loss", row.swap.mean)
        | {"swap_diverged": row.swap.diverged}
        | interval("adjusted_gain", row.adjusted.mean if row.adjusted else None)
        | {"adjusted_equivalent": row.adjusted.equivalent if row.adjusted else None}
        for row in comparison.rows
    ]  # fmt: skip

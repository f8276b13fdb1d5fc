"""Writes the page of an atlas, ``atlas.csv`` and ``atlas.md`` from ``atlas.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from qat_ste.base.files import write
from qat_ste.report.atlas.cells import (
    DISGUISE,
    LABELS,
    NEAR_ONLY,
    NEARER_ONLY,
    NO_NUMBERS,
    NOT,
    SAME,
    Atlas,
    Combination,
    read_atlas,
    rule,
)
from qat_ste.report.atlas.figures import errors_at_both_rates, heat_maps
from qat_ste.report.files import no_link
from qat_ste.report.pages import Picture, draw_all, fill, with_pdf
from qat_ste.report.seeds import LEAST_SEEDS, no_interval
from qat_ste.report.tables import percent, short, with_interval
from qat_ste.report.writers import csv_lines, markdown_lines, markdown_text

FIGURES: dict[str, tuple[Callable[[Atlas], Figure], str]] = {
    "atlas": (
        heat_maps,
        "Left: distance between the estimator and its STE counterpart at the smaller learning rate, as the change of "
        "learning rate, in per cent, that moves the weights as far (geometric mean over seeds). Right: order of the "
        "STE's error in the learning rate (mean over seeds; 1: the error falls in proportion, 0: it does not fall). "
        "?: the 95 % interval contains the threshold, or there is no interval. Grey: 0, the runs are identical; –, "
        "no numbers.",
    ),
    "atlas_errors": (
        errors_at_both_rates,
        "Weight alignment errors at the learning rate η (hollow) and at the smaller one (filled; band: 95 % interval), "
        "geometric means over seeds. Dotted: the theorem does not cover the estimator. naive, which replaces the "
        "estimator without any adjustment, is a separate run only for remap optimizers.",
    ),
}


def write_atlas(folder: Path) -> dict[str, str]:
    """Writes ``atlas.html``, ``.csv``, ``.md`` and ``figures/``; returns what went wrong by figure.

    Raises:
        OSError, ValueError, KeyError: ``atlas.json`` is unreadable, or qat-atlas did not write it.
    """
    atlas = read_atlas(folder / "atlas.json")
    no_link(folder / "figures").mkdir(exist_ok=True)
    plans = [
        (name, "", caption, partial(with_pdf, partial(draw, atlas), folder / "figures" / f"{name}.pdf"))
        for name, (draw, caption) in FIGURES.items()
    ]
    figures, failures = draw_all(plans, folder / "figures")
    write(folder / "atlas.csv", csv_lines(atlas.content["cells"]))
    write(folder / "atlas.md", to_markdown(atlas))
    write(folder / "atlas.html", render(atlas, figures))
    return failures


def render(atlas: Atlas, figures: Sequence[Picture] = ()) -> str:
    """The page as HTML; every value is escaped."""
    return fill(
        "atlas/page.html",
        atlas=atlas,
        content=atlas.content,
        headline=headline(atlas),
        findings=[finding(atlas, name) for name in atlas.optimizers],
        warnings=atlas.learned_little(),
        rule=rule(atlas.content["smaller"]),
        marks={SAME: "yes", DISGUISE: "yes", NEAR_ONLY: "half", NEARER_ONLY: "half", NOT: "no"},
        refusals={name: reason for name in atlas.estimators if (reason := atlas.refusal(name))},
        faults=[(combination, fault) for combination in atlas.combinations.values() for fault in combination.faults],
        figures=figures,
        segment_rule=segment_rule(length) if (length := segment_length(atlas)) else None,
        short=short,
        with_interval=with_interval,
        percent=percent,
        least_seeds=LEAST_SEEDS,
        settings=json.dumps(atlas.content["settings"], indent=1),
    )


def headline(atlas: Atlas) -> str:
    """How many estimators and seeds the findings rest on."""
    seeds, covered = len(atlas.content["seeds"]), len(atlas.covered())
    basis = f"{seeds} seeds, 95 % intervals" if seeds >= LEAST_SEEDS else no_interval(seeds)
    estimators = "The one estimator" if covered == 1 else f"Of the {covered} estimators"
    return f"{estimators} that the theorem covers ({basis})"


def finding(atlas: Atlas, optimizer: str) -> str:
    """Labels of the covered estimators under an optimizer, and the one that is farthest from its STE counterpart."""
    combinations = [atlas.combinations[name, optimizer] for name in atlas.covered()]
    labels = [combination.label for combination in combinations]
    counts = [
        f"{'all ' if number == len(labels) > 1 else ''}{number} {label}"
        for label in LABELS
        if (number := labels.count(label))
    ]
    text = f"{optimizer}: {', '.join(counts) or 'no estimator that the theorem covers'}"
    distances = {c.estimator: c.distance for c in combinations if c.distance is not None and c.distance.mean}
    if distances:
        farthest = max(distances, key=lambda name: distances[name].mean)
        text += f"; farthest is {farthest} at {with_interval(distances[farthest])} %"
    return text


def segment_length(atlas: Atlas) -> int | None:
    """The length of the atlas' segments; None without them."""
    settings = atlas.content["settings"].get("atlas")
    length = settings.get("segment") if isinstance(settings, dict) else None
    return length if isinstance(length, int) else None


def segment_rule(length: int) -> str:
    """Explains the table of segments."""
    return (
        f"A second measure: in segments of {length} steps each counterpart starts again from the reference's mapped "
        "state (docs/segments.md). Outcome, and error of the adjusted STE over that of a 1 % higher learning rate, "
        "with its 95 % interval: over segments where there is one seed, else over seeds."
    )


def to_markdown(atlas: Atlas) -> str:
    """Findings, rule, and label, distance and order of every combination."""

    def shown(combination: Combination) -> str:
        if combination.label in (SAME, NO_NUMBERS):
            return combination.label
        distance, order = with_interval(combination.distance), with_interval(combination.order)
        return f"{combination.label}: {distance} %, order {order}"

    def in_segments(combination: Combination) -> str:
        texts = []
        for name, lr in (("η", 0), (f"η/{atlas.content['smaller']:g}", 1)):
            if (found := combination.segments(lr)) is not None:
                texts.append(f"{name}: {found[0]}, {with_interval(found[1])}")
        return "; ".join(texts) or "–"

    findings = "\n".join(f"- {markdown_text(finding(atlas, name))}" for name in atlas.optimizers)
    warnings = "".join(f"- {markdown_text(f'{name} {text}')}\n" for name, text in atlas.learned_little().items())
    header = ["estimator", *atlas.optimizers]
    rows = [["accuracy of the reference (%)", *(with_interval(atlas.accuracy(o), percent) for o in atlas.optimizers)]]
    rows += [[e, *(shown(atlas.combinations[e, o]) for o in atlas.optimizers)] for e in atlas.estimators]
    table = markdown_lines([header, *rows], left=1)
    if length := segment_length(atlas):
        rows = [[e, *(in_segments(atlas.combinations[e, o]) for o in atlas.optimizers)] for e in atlas.estimators]
        table += f"\n\n{segment_rule(length)}\n\n{markdown_lines([header, *rows], left=1)}"
    return (
        f"{headline(atlas)}:\n\n{findings}\n\n"
        + (f"Warnings:\n\n{warnings}\n" if warnings else "")
        + f"{rule(atlas.content['smaller'])}\n\n{table}\n"
    )

"""The page of an atlas, ``atlas.csv`` and ``atlas.md``, from ``atlas.json``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from io import StringIO
from pathlib import Path

from matplotlib.figure import Figure

from qat_ste.base.files import write
from qat_ste.report.atlas.cells import DISGUISE, NOT, OPEN, SAME, UNKNOWN, Atlas, Pair, read_atlas, rule
from qat_ste.report.atlas.figures import errors_at_both_rates, heat_maps
from qat_ste.report.pages import Picture, draw_all, fill
from qat_ste.report.seeds import Summary
from qat_ste.report.writers import csv_text, markdown_lines

FIGURES: dict[str, tuple[Callable[[Atlas], Figure], str]] = {
    "atlas": (
        heat_maps,
        "Means over seeds. Left: how far the STE counterpart ended from the estimator at the smaller learning rate, "
        "told as the change of learning rate, in per cent, that takes it as far. Right: the order at which that "
        "distance falls with the learning rate (1: in proportion, 0: not at all). On grey: 0, the runs are the same "
        "bit for bit; –, nothing to count.",
    ),
    "atlas_errors": (
        errors_at_both_rates,
        "Weight alignment errors at both learning rates, a line an estimator, mean over seeds (dotted: the theorem "
        "does not cover it). naive, the STE swapped in without adjustment, is a run of its own under remap alone.",
    ),
}


def write_atlas(folder: Path) -> dict[str, str]:
    """Writes ``atlas.html``, ``.csv``, ``.md`` and the figures; returns what went wrong by figure.

    Raises:
        OSError, ValueError, KeyError: ``atlas.json`` cannot be read, or is not qat-atlas's.
    """
    atlas = read_atlas(folder / "atlas.json")
    plans = [(name, "", caption, partial(draw, atlas)) for name, (draw, caption) in FIGURES.items()]
    figures, failures = draw_all(plans, folder)
    write(folder / "atlas.csv", to_csv(atlas))
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
        rule=rule(atlas.content["smaller"]),
        words=(SAME, DISGUISE, OPEN, NOT, UNKNOWN),
        refusals={name: reason for name in atlas.estimators if (reason := atlas.refusal(name))},
        faults=[(pair, fault) for pair in atlas.pairs.values() for fault in pair.faults],
        figures=figures,
        short=short,
        percent=percent,
        spread=spread,
        settings=json.dumps(atlas.content["settings"], indent=1),
    )


def headline(atlas: Atlas) -> str:
    """Under which optimizers how many of the estimators that the theorem covers are the STE in disguise."""
    covered = [name for name in atlas.estimators if not atlas.refusal(name)]
    under: dict[int, list[str]] = {}
    for optimizer in atlas.optimizers:
        found = [atlas.pairs[name, optimizer].word in (SAME, DISGUISE) for name in covered]
        under.setdefault(sum(found), []).append(optimizer)
    parts = [
        f"{'all' if number == len(covered) else number or 'none'} under {' · '.join(names)}"
        for number, names in sorted(under.items(), reverse=True)
    ]
    return f"The STE in disguise, of the {len(covered)} that the theorem covers: {'; '.join(parts)}."


def spread(summary: Summary | None, written: Callable[[float | None], str] | None = None) -> str:
    """Mean ± standard deviation over seeds, by default to two significant digits."""
    if summary is None:
        return "–"
    written = written or short
    return written(summary.mean) + ("" if summary.sd is None else f" ± {written(summary.sd)}")


def to_csv(atlas: Atlas) -> str:
    """A line a cell. Floats as Python writes them: they read back equal. Nothing to count: empty."""
    text = StringIO()
    cells = atlas.content["cells"]
    writer = csv.DictWriter(text, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        writer.writerow({key: csv_text(value) if isinstance(value, str) else value for key, value in cell.items()})
    return text.getvalue()


def to_markdown(atlas: Atlas) -> str:
    """What follows, distance and order of every pair, estimators by optimizers."""

    def told(pair: Pair) -> str:
        near, order = pair.over_seeds("equivalent_lr_jitter"), pair.order
        return f"{pair.word}: {spread(near)} %, order {spread(order)}" if near else pair.word

    header = ["estimator", *atlas.optimizers]
    rows = [[e, *(told(atlas.pairs[e, o]) for o in atlas.optimizers)] for e in atlas.estimators]
    return f"{headline(atlas)}\n\n{rule(atlas.content['smaller'])}\n\n{markdown_lines([header, *rows], left=1)}\n"


def short(value: float | None) -> str:
    """Two significant digits."""
    if value is None:
        return "–"
    if 1e-4 <= abs(value) < 100:
        return f"{value:#.2g}".removesuffix(".")
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{100 * value:.1f}"

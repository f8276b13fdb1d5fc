"""One self-contained page of a run: verdict, table, figures, configuration and the command that made it."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path

from qat_ste.base.files import write
from qat_ste.report.files import no_link, regular
from qat_ste.report.pages import Picture, draw_all, fill
from qat_ste.report.run.figures import FIGURES
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.tables import OF_LAYER, added, shown, table_rows

CAPTIONS = {  # in the page's order
    "alignment_error": "Weight alignment error over time: how far each counterpart is from the reference, in units of "
    "the way that its weights went. Near jitter: no further than a slightly changed learning rate takes it.",
    "alignment_scatter": "Final weights of the reference against those of its STE counterpart. On the dashed line the "
    "two runs agree; where the theory asks for the weight map M, only the re-mapped weights should lie there.",
    "movement_scatter": "Initial against final weights, in units of the quantizer's range.",
    "curves": "Loss and accuracy of the reference and its main counterpart, and the difference of every counterpart "
    "from the reference.",
}
MOST_BYTES = 20 << 20  # of a figure


def write_report(folder: Path) -> dict[str, str]:
    """Draws the figures and writes ``report.html``; returns what went wrong by figure."""
    run = RunFiles(folder)
    no_link(folder / "figures").mkdir(exist_ok=True)
    plans = [(name, "", "", partial(draw, run)) for name, draw in FIGURES.items()]
    _, failures = draw_all(plans, folder / "figures")
    write(folder / "report.html", render(run))
    return failures


def render(run: RunFiles) -> str:
    """The page as HTML; every value is escaped."""
    results = run.results
    members = {"reference": results["reference"], **results["counterparts"]}
    rows = table_rows(results["metrics"])
    figures = []
    for name, caption in CAPTIONS.items():
        with suppress(OSError):  # a figure that could not be drawn, or a file that is none of ours
            image = regular(no_link(run.folder / "figures") / f"{name}.png", MOST_BYTES).read_bytes()
            figures.append(Picture(name, "", caption, image))
    return fill(
        "run/page.html",
        results=results,
        members=members,
        rows=rows,
        layer_rows=OF_LAYER | added(rows),
        main=run.main_counterpart,
        figures=figures,
        shown=shown,
        whole=whole,
        config=json.dumps(results["config"], indent=1),
    )


def whole(number: float | None) -> str:
    """Without decimal places; "–" where there is none."""
    return "–" if number is None else f"{number:,.0f}"

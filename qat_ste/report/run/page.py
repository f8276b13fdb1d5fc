"""Writes one self-contained page for a run: verdict, set-up, tables, figures, configuration and command."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from qat_ste.base.files import write
from qat_ste.base.run_config import identity
from qat_ste.base.text import one_line
from qat_ste.base.text import shown as shown_setting
from qat_ste.report.files import no_link, regular
from qat_ste.report.pages import Picture, draw_all, fill, with_pdf
from qat_ste.report.run.figures import FIGURES, OF_SEGMENTS, names_of
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.run.segments import section
from qat_ste.report.tables import OF_LAYER, added, shown, shown_estimate, steps, table_rows

CAPTIONS = {  # in the page's order
    "alignment_error": "Weight alignment error over training: distance of each counterpart from the reference, in "
    "units of the length of the path that its weights travelled. A counterpart near jitter is no farther from the "
    "reference than a run with a slightly larger learning rate.",
    "segment_growth": "Weight alignment error in segments of K steps, against K, with 95 % intervals; counterparts are "
    "drawn side by side. Dashed grey: the error that rounding of the weights alone makes. Chaos makes the errors of "
    "ste and jitter grow alike.",
    "segment_errors": "Weight alignment error of each of the shortest segments over training. The error of the run "
    "weighs segments by their path, which shrinks with the learning rate.",
    "alignment_scatter": "Final weights of the reference against those of its STE counterpart, in units of the largest "
    "level. On the dashed line they are equal. Where the theory needs the weight map M, only the re-mapped weights "
    "should lie on it.",
    "movement_scatter": "Initial and final weights, in units of the largest level. On the dashed line a weight did not "
    "move.",
    "curves": "Training loss and test accuracy of the reference and its main counterpart; and the difference of every "
    "counterpart from the reference.",
}
ADJUSTED = {  # by equivalence
    "remap": "initial weights by M, learning rate by α",
    "keep": "nothing",
    "exact": "nothing: the runs are identical",
    "none": "nothing: no adjustment is known",
}
MOST_BYTES = 20 << 20  # of a figure
LONGEST = 200  # characters of a name, and of settings


def write_report(folder: Path) -> dict[str, str]:
    """Draws the figures and writes ``report.html``; returns the error of each figure that failed by name."""
    run = RunFiles(folder)
    no_link(folder / "figures").mkdir(exist_ok=True)
    plans = []
    for name in names_of(run):
        draw = partial(FIGURES[name], run)
        pdf = folder / "figures" / f"{name}.pdf"
        plans.append((name, "", "", partial(with_pdf, draw, pdf) if name in OF_SEGMENTS else draw))
    _, failures = draw_all(plans, folder / "figures")
    write(folder / "report.html", render(run))
    return failures


def render(run: RunFiles) -> str:
    """Returns the page as HTML in which every value is escaped."""
    results = run.results
    rows = table_rows(results["metrics"])
    pictures = []
    for name, caption in CAPTIONS.items():
        if name not in names_of(run):
            continue
        with suppress(OSError):  # the figure failed, or its file is not one of ours
            content = regular(no_link(run.folder / "figures") / f"{name}.png", MOST_BYTES).read_bytes()
            pictures.append(Picture(name, "", caption, content))
    seed = _section(results["config"], "train").get("seed")
    return fill(
        "run/page.html",
        results=results,
        seed=shown_setting(seed) if isinstance(seed, int) else None,
        setup=_setup(results),
        adjusted=ADJUSTED.get(results["equivalence"]),
        several_seeds=_several_seeds(results["command"]),
        members={"reference": results["reference"], **results["counterparts"]},
        rows=rows,
        segments=run.segments,
        section=section(run),
        summary=results["segment_summary"],
        of_segments=OF_SEGMENTS,
        layer_rows=OF_LAYER | added(rows),
        main=run.main_counterpart,
        figures=pictures,
        shown=shown,
        estimate=shown_estimate,
        of_steps=steps,
        whole=whole,
        times=times,
        config=json.dumps(results["config"], indent=1),
    )


def whole(number: float | None) -> str:
    """Formats a number without decimal places; None as "–"."""
    return "–" if number is None else f"{number:,.0f}"


def times(ratio: float | None) -> str:
    """Formats an error in units of that of ``jitter`` with three significant digits; None as "–"."""
    return "–" if ratio is None else f"{ratio:.3g} × jitter"


def _setup(results: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns name and settings, as ("tanh", "k=5.5"), of estimator, optimizer, quantizer, model and data."""
    config = identity(results["config"])
    setup = {}
    factor = _section(config, "train").get("lr_scale")
    for group in ("estimator", "optimizer", "quantizer", "model", "dataset"):
        section = _section(config, group)
        name = results["choices"].get(group) or str(section.get("_target_", "–")).rpartition(".")[2]
        settings = {key: value for key, value in section.items() if value and not key.startswith("_")}
        if group == "optimizer" and factor not in (None, 1):
            settings["train.lr_scale"] = factor
        if settings.get("levels"):
            settings.pop("bits", None)  # not used then
        text = ", ".join(f"{key}={shown_setting(value)}" for key, value in settings.items())
        setup[group] = (one_line(name, LONGEST), one_line(text, LONGEST))
    return setup


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _several_seeds(command: str | None) -> str | None:
    """Returns the command that trains this run with three seeds; None if the run has no command."""
    try:
        program, *overrides = shlex.split(command or "")
    except ValueError:
        return None
    replaced = ("-m", "--multirun", "train.seed=", "hydra.run.dir=")
    kept = [override for override in overrides if not override.startswith(replaced)]
    return shlex.join([program, "-m", "train.seed=1,2,3", *kept])

"""Which figures a report of many runs shows: some of all runs, and of each set-up its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from qat_ste.report.files import no_link
from qat_ste.report.pages import Picture, Plan, draw_all
from qat_ste.report.run import figures
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.sweep.claims import NEGLIGIBLE, column_title
from qat_ste.report.sweep.figures import error_over_training, final_errors, panels_of_groups, panels_of_setup
from qat_ste.report.sweep.groups import Group

MOST_ROWS, MOST_PANELS, MOST_RUNS = 40, 12, 6  # drawn; a report names what it leaves out
SPREAD = "Lines: mean over seeds; bands: from the lowest to the highest seed."
OF_ONE_RUN: dict[str, tuple[Callable[[RunFiles], Figure], str]] = {
    "alignment_scatter": (
        figures.alignment_scatter,
        "Final weights of the reference, raw and (where the theory asks for M) re-mapped, against those of the STE "
        "counterpart; on the dashed line they agree.",
    ),
    "movement_scatter": (figures.movement_scatter, "Initial against final weights, in units of the range."),
    "curves": (figures.curves, "Loss and accuracy of reference and STE counterpart, and what counterparts differ by."),
}


def draw_gallery(groups: Sequence[Group], folder: Path) -> tuple[list[Picture], dict[str, str]]:
    """Draws into ``folder``; returns the figures in the page's order, and what went wrong by name."""
    no_link(folder).mkdir(exist_ok=True)
    return draw_all(_planned(groups), folder)


def _planned(groups: Sequence[Group]) -> Iterator[Plan]:
    yield _glance(groups)
    setups = {setup: {group.row: group for group in alike} for setup, alike in groupby(groups, lambda g: g.setup)}
    of_experiments = {setup: rows for setup, rows in setups.items() if next(iter(rows.values())).experiment}
    names = _file_names(setups)
    others = [group for group in groups if group.setup not in of_experiments]
    if others:
        drawn = others[:MOST_PANELS]
        left_out = _left_out(len(drawn), len(others), "configurations")
        caption = f"Weight alignment error over training. {SPREAD}{left_out}"
        yield "alignment_error", "Over training", caption, partial(error_over_training, panels_of_groups(drawn))
    for number, (setup, rows) in enumerate(setups.items()):
        if number >= MOST_RUNS:
            break
        if setup in of_experiments:
            caption = f"{setup}: weight alignment error over training. {SPREAD}"
            panels = panels_of_setup(rows)
            yield f"{names[setup]}_alignment_error", setup, caption, partial(error_over_training, panels)
        group = rows.get("default") or next(iter(rows.values()))
        left_out = _left_out(MOST_RUNS, len(setups), "set-ups") if not number else ""
        yield from _of_first_run(group, names[setup], left_out)


def _glance(groups: Sequence[Group]) -> Plan:
    panels: dict[str, list[tuple[str, Group]]] = {}
    drawn = groups[:MOST_ROWS]
    for group in drawn:
        parts = [column_title(group.row, "ste")] if group.row != "default" or not group.label else []
        label = ", ".join([*parts, *([group.label] if group.label else [])])
        panels.setdefault(group.experiment or "", []).append((label, group))
    caption = (
        "Final weight alignment error: a dot a seed, a bar their geometric mean; shaded: as close as the row's own "
        f"jitter, up to {NEGLIGIBLE:g} times. Where the blue dots lie in the shade the estimator did not matter."
        f"{_left_out(len(drawn), len(groups), 'configurations')}"
    )
    return "final_errors", "At a glance", caption, partial(final_errors, panels)


def _of_first_run(group: Group, prefix: str, left_out: str) -> Iterator[Plan]:
    run = group.runs[0]
    files = RunFiles(run.folder)
    for name, (draw, caption) in OF_ONE_RUN.items():
        seed = f"{group.setup}, seed {run.seed}: " if run.seed is not None else f"{group.setup}: "
        yield f"{prefix}_{name}", group.setup, seed + caption + left_out, partial(draw, files)


def _left_out(drawn: int, of: int, what: str) -> str:
    return f" The first {drawn} of {of} {what} are drawn." if drawn < of else ""


def _file_names(setups: Iterable[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for setup in setups:
        name = re.sub(r"[^A-Za-z0-9.=]+", "_", setup)[:60].strip("._") or "runs"
        while name in names.values():
            name += "_"
        names[setup] = name
    return names

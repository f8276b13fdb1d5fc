"""Selects and draws the figures of many runs: some show all runs, others one set-up or one run."""

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
from qat_ste.report.sweep.claims import NEGLIGIBLE
from qat_ste.report.sweep.figures import error_over_training, final_errors, panels_of_groups, panels_of_setup, title_of
from qat_ste.report.sweep.groups import Group

MOST_ROWS, MOST_PANELS, MOST_RUNS = 40, 12, 6  # captions say how many more there are
OF_ONE_RUN: dict[str, tuple[Callable[[RunFiles], Figure], str]] = {
    "alignment_scatter": (
        figures.alignment_scatter,
        "final weights of the reference (raw and, if M applies, re-mapped) against those of ste; dashed: equality.",
    ),
    "movement_scatter": (figures.movement_scatter, "initial against final weights, in units of the range."),
    "curves": (figures.curves, "loss and accuracy of the reference and ste, and each counterpart minus the reference."),
}


def draw_gallery(groups: Sequence[Group], folder: Path) -> tuple[list[Picture], dict[str, str]]:
    """Draws into ``folder``; returns the figures in the page's order, and failures by name."""
    no_link(folder).mkdir(exist_ok=True)
    return draw_all(_planned(groups), folder)


def seeds_of(groups: Iterable[Group]) -> str:
    """Returns the number of seeds per group, as "one run", "3 seeds" or "1 to 3 seeds"."""
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "one run"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _planned(groups: Sequence[Group]) -> Iterator[Plan]:
    yield _final_errors(groups)
    setups = {setup: {group.row: group for group in members} for setup, members in groupby(groups, lambda g: g.setup)}
    names = _file_names(setups)
    others = [group for group in groups if not group.experiment]
    if others:
        drawn = others[:MOST_PANELS]
        caption = _over_training(drawn) + _omitted(len(drawn), len(others), "configurations")
        yield "alignment_error", "Over training", caption, partial(error_over_training, panels_of_groups(drawn))
    for number, (setup, rows) in enumerate(setups.items()):
        if number >= MOST_RUNS:
            break
        group = rows.get("default") or next(iter(rows.values()))
        if group.experiment:
            caption = f"{setup}: {_over_training(rows.values())}"
            yield f"{names[setup]}_alignment_error", setup, caption, partial(error_over_training, panels_of_setup(rows))
        omitted = _omitted(MOST_RUNS, len(setups), "set-ups") if not number else ""
        files, seed = RunFiles(group.runs[0].folder), group.runs[0].seed
        run = f"One run ({setup}{'' if seed is None else f', seed {seed}'}): "
        for name, (draw, caption) in OF_ONE_RUN.items():
            yield f"{names[setup]}_{name}", setup, run + caption + omitted, partial(draw, files)


def _final_errors(groups: Sequence[Group]) -> Plan:
    panels: dict[str, list[tuple[str, Group]]] = {}
    drawn = groups[:MOST_ROWS]
    for group in drawn:
        panels.setdefault(group.experiment or "", []).append((title_of(group), group))
    caption = (
        f"Final weight alignment error, {seeds_of(drawn)} per row; dots: seeds; bars: geometric means; shaded: up to "
        f"{NEGLIGIBLE:g} × the geometric mean of jitter, the bound of the claim about ste and jitter."
        f"{_omitted(len(drawn), len(groups), 'configurations')}"
    )
    return "final_errors", "At a glance", caption, partial(final_errors, panels)


def _over_training(groups: Iterable[Group]) -> str:
    spread = seeds_of(groups)
    drawn = spread if spread == "one run" else f"mean of {spread}; bands: from the lowest to the highest seed"
    return f"Weight alignment error over training. Lines: {drawn}."


def _omitted(drawn: int, total: int, unit: str) -> str:
    return f" Only the first {drawn} of {total} {unit} are drawn." if drawn < total else ""


def _file_names(setups: Iterable[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for setup in setups:
        name = re.sub(r"[^A-Za-z0-9.=]+", "_", setup)[:60].strip("._") or "runs"
        while name in names.values():
            name += "_"
        names[setup] = name
    return names

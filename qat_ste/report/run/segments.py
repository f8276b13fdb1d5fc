"""Builds the tables about segments in the page of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.tables import shown, shown_estimate, steps

TITLES = (
    "alignment error (95\xa0%\xa0interval)",
    "× jitter (95\xa0%\xa0interval)",
    "segments",
    "auto\xadcorrelation",  # may break there
    "quantized agreement",
    "loss difference",
)
SHORT, AT_FLOOR = "short", "undecidable"
NOTES = {
    SHORT: "the optimizer’s momentum remembers more than a third of such a segment, which hides part of what it does",
    AT_FLOOR: "the error is less than three times the floor of rounding, so that it decides nothing",
}


def section(run: RunFiles) -> dict[str, Any]:
    """Returns the content of the section.

    Returns:
        ``titles`` of the columns; ``rows``: title, marks, whether it is the first of its length, cells; ``notes`` below
        the table; names of ``tensors``.
    """
    summary = run.results["segment_summary"]
    rows = list(_rows(run))
    marked = [mark for mark in NOTES if any(mark in marks for _, marks, *_ in rows)]
    notes = [f"{mark}: {NOTES[mark]}." for mark in marked]
    notes.append(f"Autocorrelation is that of neighbouring segments. {summary['method'] or ''}.")
    if summary["state"]:
        notes.append(f"State of the optimizer: {summary['state']}.")
    shortest: dict[str, Any] = next(iter(run.segments.values()), {})
    tensors = list(dict.fromkeys(tensor for values in shortest.values() for tensor in values["layers"]))
    return {"titles": TITLES, "rows": rows, "notes": notes, "tensors": tensors}


def _rows(run: RunFiles) -> Iterator[tuple[str, list[str], bool, list[str]]]:
    verdicts = run.results["segment_summary"]["verdicts"]
    for length, members in run.segments.items():
        verdict = verdicts.get(length, {})
        for number, (name, values) in enumerate(members.items()):
            applies = {SHORT: verdict.get("short"), AT_FLOOR: not values["decidable"]}
            marks = [mark for mark, is_so in applies.items() if is_so]
            cells = [
                shown_estimate(values["weight_alignment_error"]),
                shown_estimate(verdict.get(f"{name}_over_jitter")),
                _shown(values["segments"], ",.0f"),
                _shown(values["autocorrelation"], ".2f"),
                shown(values["quantized_weight_agreement"]),
                shown(values["loss_difference"]),
            ]
            yield f"{steps(length)}, {name}", marks, not number, cells


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)

"""The paper's table, one for each set-up: metrics are its rows, counterparts its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qat_ste.report.seeds import Summary
from qat_ste.report.sweep.claims import column_title
from qat_ste.report.sweep.groups import Group
from qat_ste.report.tables import shown

REFERENCE_ACCURACY = "reference_test_accuracy"
PAPER_ROWS = {
    "change_point_sequence_agreement": "change-point sequence agreement",
    "compressed_change_point_sequence_agreement": "… compressed",
    "average_change_point_error": "average change-point error (steps)",
    "weight_alignment_error": "weight alignment error",
    "quantized_weight_agreement": "quantized weight agreement",
    "quantized_weight_agreement_moved": "… of weights that moved",
    "validation_loss_correlation": "validation loss correlation",
    "validation_accuracy_correlation": "validation accuracy correlation",
    "inference_agreement": "inference agreement",
    "incorrect_inference_agreement": "incorrect inference agreement",
    REFERENCE_ACCURACY: "test accuracy, reference",
    "test_accuracy": "test accuracy, counterpart",
}
# Summaries by set-up, row, counterpart and metric; plain dictionaries, as in a summary file.
Measured = dict[str, dict[str, dict[str, dict[str, Summary | None]]]]


@dataclass(frozen=True)
class Column:
    """One counterpart of one row; ``cells`` in the order of the table's rows."""

    title: str
    row: str
    counterpart: str
    cells: tuple[Summary | None, ...]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return max((cell.n for cell in self.cells if cell), default=0)

    @property
    def shown(self) -> tuple[str, ...]:
        """The cells as text."""
        return tuple(shown_summary(cell, self.n) for cell in self.cells)


@dataclass(frozen=True)
class PaperTable:
    """The table of one set-up; ``rows``: titles of its metrics by name."""

    setup: str
    columns: tuple[Column, ...]
    rows: Mapping[str, str]


def measure(groups: Iterable[Group]) -> Measured:
    """Computes mean and standard deviation over seeds of every number in the table."""
    measured: Measured = {}
    for group in groups:
        rows = measured.setdefault(group.setup, {})
        rows[group.row] = {name: _summaries(group, name) for name in group.counterparts}
    return measured


def paper_tables(measured: Measured, added: dict[str, str]) -> list[PaperTable]:
    """Makes a table for each set-up, in this order; ``added``: titles of metrics that follow the paper's."""
    titles = PAPER_ROWS | added | PAPER_ROWS  # added metrics do not rename the paper's
    return [
        PaperTable(
            setup,
            tuple(
                Column(column_title(row, name), row, name, tuple(map(metrics.get, titles)))
                for row, counterparts in rows.items()
                for name, metrics in counterparts.items()
            ),
            titles,
        )
        for setup, rows in measured.items()
    ]


def blocks(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Splits columns into blocks of at most ``width``; columns of one row stay together if they fit."""
    split: list[list[Column]] = [[]]
    for _, members in groupby(columns, lambda column: column.row):
        same_row = list(members)
        if split[-1] and len(split[-1]) + min(len(same_row), width) > width:
            split.append([])
        for column in same_row:
            if len(split[-1]) == width:
                split.append([])
            split[-1].append(column)
    return split


def shown_summary(summary: Summary | None, n: int | None = None) -> str:
    """Formats mean ± standard deviation to the same place, with the number of values if it is not ``n``."""
    if summary is None:
        return "–"
    mean = shown(summary.mean)
    text = mean
    if summary.sd is not None:
        places = len(mean.partition(".")[2])
        exact = "e" in mean or summary.mean == 0
        text += f" ± {shown(summary.sd)}" if exact else f" ± {summary.sd:.{places}f}"
    return text if n in (None, summary.n) else f"{text} (n = {summary.n})"


def _summaries(group: Group, counterpart: str) -> dict[str, Summary | None]:
    summaries = {key: group.summary(counterpart, key) for key in PAPER_ROWS | group.added}
    return summaries | {REFERENCE_ACCURACY: group.summary("reference", "test_accuracy")}

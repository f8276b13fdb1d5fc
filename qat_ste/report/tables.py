"""Which numbers tables show, in what order and under which titles, and how a number is written."""

from __future__ import annotations

from collections.abc import Mapping

BEFORE_METRICS = {"test_accuracy": "test accuracy", "test_loss": "test loss"}
METRICS = {  # of version 0.1.0, whose results.json holds no titles
    "weight_alignment_error": "weight alignment error",
    "weight_alignment_error_unmapped": "… without weight map",
    "quantized_weight_agreement": "quantized weight agreement",
    "quantized_weight_agreement_moved": "… of weights that moved",
    "change_point_sequence_agreement": "change-point sequence agreement",
    "compressed_change_point_sequence_agreement": "… compressed",
    "average_change_point_error": "change-point error (steps)",
    "average_compressed_change_point_error": "… compressed (steps)",
    "average_oscillation_error": "oscillation error",
}
AFTER_METRICS = {
    "validation_loss_correlation": "validation loss correlation",
    "validation_accuracy_correlation": "validation accuracy correlation",
    "inference_agreement": "inference agreement",
    "incorrect_inference_agreement": "incorrect inference agreement",
    "moved_fraction": "weights that moved",
    "saturated_fraction": "saturated weights",
}
OF_LAYER = {
    "weight_alignment_error": "alignment error",
    "quantized_weight_agreement": "quantized agreement",
    "quantized_weight_agreement_moved": "… moved",
    "change_point_sequence_agreement": "sequence agreement",
    "average_change_point_error": "change-point error",
}


def table_rows(metrics: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The titles of a run's numbers, in order: metrics that 0.1.0 did not have follow those that it had.

    Args:
        metrics: of ``results.json``.
    """
    titles = {name: metrics[name]["title"] for name in (*METRICS, *metrics) if name in metrics}
    return BEFORE_METRICS | titles | AFTER_METRICS


def added(rows: Mapping[str, str]) -> dict[str, str]:
    """Those of the rows that 0.1.0 did not have."""
    known = BEFORE_METRICS | METRICS | AFTER_METRICS
    return {name: title for name, title in rows.items() if name not in known}


def shown(value: float | None) -> str:
    """At least three significant digits, aligned for values of one size; "–" where there was nothing to count."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 10 else f"{value:.1f}"

"""Which numbers are shown in what order, and how a number is written."""

from __future__ import annotations

TABLE_ROWS = (
    ("test_accuracy", "test accuracy"),
    ("test_loss", "test loss"),
    ("weight_alignment_error", "weight alignment error"),
    ("weight_alignment_error_unmapped", "… without weight map"),
    ("quantized_weight_agreement", "quantized weight agreement"),
    ("quantized_weight_agreement_moved", "… of weights that moved"),
    ("change_point_sequence_agreement", "change-point sequence agreement"),
    ("compressed_change_point_sequence_agreement", "… compressed"),
    ("average_change_point_error", "change-point error (steps)"),
    ("average_compressed_change_point_error", "… compressed (steps)"),
    ("average_oscillation_error", "oscillation error"),
    ("validation_loss_correlation", "validation loss correlation"),
    ("validation_accuracy_correlation", "validation accuracy correlation"),
    ("inference_agreement", "inference agreement"),
    ("incorrect_inference_agreement", "incorrect inference agreement"),
    ("moved_fraction", "weights that moved"),
    ("saturated_fraction", "saturated weights"),
)


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

"""Rows of the tables: which numbers, their order and titles, and the format of a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qat_ste.report.seeds import Estimate

BEFORE_METRICS = {"test_accuracy": "test accuracy", "test_loss": "test loss"}
METRICS = {  # of version 0.1.0, whose results.json has no titles
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
    "quantized_weight_agreement_moved": "quantized agreement, moved weights",
    "change_point_sequence_agreement": "sequence agreement",
    "average_change_point_error": "change-point error (steps)",
}


def table_rows(metrics: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the titles of a run's numbers by key, in order: metrics added since 0.1.0 follow its own.

    Args:
        metrics: ``metrics`` of ``results.json``.
    """
    titles = {name: metrics[name]["title"] for name in (*METRICS, *metrics) if name in metrics}
    return BEFORE_METRICS | titles | AFTER_METRICS


def added(rows: Mapping[str, str]) -> dict[str, str]:
    """Returns the rows added since 0.1.0."""
    original = BEFORE_METRICS | METRICS | AFTER_METRICS
    return {name: title for name, title in rows.items() if name not in original}


def shown(value: float | None) -> str:
    """Formats a number with at least three significant digits; None, where nothing was counted, as "–"."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 10 else f"{value:.1f}"


def shown_estimate(interval: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """Formats an estimate and the ends of its interval, if it has one, as "0.514 (0.511 to 0.517)"; None as "–".

    Args:
        interval: ``value``, ``low`` and ``high``.
        digits: significant digits.
    """
    if interval is None or interval["value"] is None:
        return "–"
    value, low, high = (
        "0" if number == 0 else f"{number:#.{digits}g}".removesuffix(".")
        for number in (interval["value"], interval["low"] or 0.0, interval["high"] or 0.0)
    )
    return value if interval["low"] is None else f"{value} ({low} to {high})"


def steps(length: int) -> str:
    """Formats the length of a segment."""
    return "1 step" if length == 1 else f"{length:,} steps"


def with_interval(estimate: Estimate | None, written: Callable[[float | None], str] | None = None) -> str:
    """Mean and 95 % interval, by default to two significant digits: "3.0 (2.1 to 4.3)"."""
    if estimate is None:
        return "–"
    written = written or short
    if estimate.low is None:
        return written(estimate.mean)
    return f"{written(estimate.mean)} ({written(estimate.low)} to {written(estimate.high)})"


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

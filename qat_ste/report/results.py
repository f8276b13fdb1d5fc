"""Reads ``results.json``, from any source: checks types and bounds of all values that reports use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.text import one_line
from qat_ste.report.files import no_link
from qat_ste.report.tables import METRICS, OF_LAYER, added, table_rows

SCHEMA = 1
MOST_COUNTERPARTS, MOST_METRICS, MOST_LENGTHS = 50, 100, 20
MOST_ITEMS, DEEPEST = 10_000, 30  # items and levels of a configuration
LONGEST_NAME, LONGEST_TITLE = 200, 100  # characters
LARGEST, SMALLEST = 1e100, 1e-100  # the ratio and the squares of two numbers in between are finite
NUMBERS = ("steps", "wall_seconds", "cpu_count", "quantized_weights", "lr_factor")
OF_SEGMENTS = ("segments", "autocorrelation", "floor", "quantized_weight_agreement", "loss_difference")
RATIOS = ("ste_over_jitter", "naive_over_jitter")
TEXTS = ("equivalence", "device", "command")


class ForeignError(ValueError):
    """A ``results.json`` that qat-run did not write; the message says why."""


def read_results(folder: Path) -> dict[str, Any]:
    """Returns the content, with every key that reports use; missing or non-finite values are None or empty.

    Raises:
        OSError: the file is missing, too large or a symbolic link.
        ValueError: it is not JSON.
        ForeignError: qat-run did not write it.
    """
    results = read_json(no_link(folder / "results.json"))
    if not isinstance(results, dict):
        raise ForeignError(f"it must be an object, got {type(results).__name__}")
    sections = {key: results.get(key) for key in ("config", "reference", "counterparts")}
    missing = [key for key, value in sections.items() if not isinstance(value, dict) or not value]
    if missing:
        raise ForeignError(f"it lacks {', '.join(missing)}")
    if results.get("schema", SCHEMA) != SCHEMA:
        raise ForeignError(f"schema must be {SCHEMA}, got {results['schema']}")
    _check_config(results["config"])
    counterparts, verdict = results["counterparts"], _object(results, "verdict")
    ratios = {key: _number(key, verdict.get(key)) for key in RATIOS}
    metrics = _metrics(_object(results, "metrics"))
    rows = table_rows(metrics)
    if len(counterparts) > MOST_COUNTERPARTS:
        raise ForeignError(f"{len(counterparts)} counterparts, more than the limit of {MOST_COUNTERPARTS}")
    return (
        results
        | {key: _number(key, results.get(key)) for key in NUMBERS}
        | {key: _text(results.get(key)) for key in TEXTS}
        | {"versions": {_name(key): one_line(str(v)[:LONGEST_NAME]) for key, v in _object(results, "versions").items()}}
        | {"choices": {k: _name(v) for k, v in _object(results, "choices").items() if isinstance(v, str)}}
        | {"metrics": metrics}
        | {"reference": _member("reference", results["reference"], rows)}
        | {"counterparts": {_name(name): _member(name, numbers, rows) for name, numbers in counterparts.items()}}
        | {"segments": _segments(_object(results, "segments"), list(counterparts))}
        | {"segment_summary": _segment_summary(_object(results, "segment_summary"), list(counterparts))}
        | {
            "verdict": {
                "statement": _text(verdict.get("statement")),
                "outcome": _text(verdict.get("outcome")),
                **ratios,
            }
        }
    )


def _metrics(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the title of each metric; those of version 0.1.0 if there are none."""
    if len(metrics) > MOST_METRICS:
        raise ForeignError(f"{len(metrics)} metrics, more than the limit of {MOST_METRICS}")
    for name, description in metrics.items():
        if not isinstance(description, dict) or not isinstance(description.get("title"), str) or name == "layers":
            raise ForeignError(f"metrics.{_name(name)} is not a metric with a title")
    titles = {_name(name): one_line(description["title"], LONGEST_TITLE) for name, description in metrics.items()}
    return {name: {"title": title} for name, title in (titles or METRICS).items()}


def _member(member: str, values: Any, rows: dict[str, str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ForeignError(f"{member} must be an object, got {type(values).__name__}")
    layers, of_layer = {}, OF_LAYER | added(rows)
    for layer, numbers in _object(values, "layers").items():
        if not isinstance(numbers, dict):
            raise ForeignError(f"{member}.layers.{_name(layer)} must be an object, got {type(numbers).__name__}")
        layers[_name(layer)] = {key: _number(f"{member}.layers.{key}", numbers.get(key)) for key in of_layer}
    return {key: _number(f"{member}.{key}", values.get(key)) for key in rows} | {"layers": layers}


def _segments(by_length: dict[str, Any], counterparts: list[str]) -> dict[int, dict[str, dict[str, Any]]]:
    """Returns the numbers of segments by length, ascending, and counterpart; an old run has none."""
    lengths = {}
    for length, members in _by_length("segments", by_length):
        if not isinstance(members, dict):
            raise ForeignError(f"segments.{length} must be an object, got {type(members).__name__}")
        lengths[length] = {name: _segment(length, members[name]) for name in counterparts if name in members}
    return dict(sorted(lengths.items()))


def _segment(length: int, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ForeignError(f"a counterpart of segments.{length} must be an object, got {type(values).__name__}")
    key = f"segments.{length}.weight_alignment_error"
    error = {"value": values.get("weight_alignment_error"), "low": values.get("low"), "high": values.get("high")}
    layers = {_name(layer): _interval(key, interval) for layer, interval in _object(values, "layers").items()}
    return {name: _number(f"segments.{name}", values.get(name)) for name in OF_SEGMENTS} | {
        "weight_alignment_error": _interval(key, error),
        "decidable": values.get("decidable") is not False,
        "layers": layers,
    }


def _segment_summary(summary: dict[str, Any], counterparts: list[str]) -> dict[str, Any]:
    """Returns ``verdicts`` by length, ascending, ``growth`` by counterpart, ``state`` and ``method``."""
    verdicts = {}
    for length, verdict in _by_length("segment_summary.verdicts", _object(summary, "verdicts")):
        if not isinstance(verdict, dict):
            raise ForeignError(f"segment_summary.verdicts.{length} must be an object, got {type(verdict).__name__}")
        ratios = {key: _interval(key, verdict.get(key)) for key in RATIOS}
        statement = {"statement": _text(verdict.get("statement")), "short": verdict.get("short") is True}
        verdicts[length] = statement | ratios
    growth = _object(summary, "growth")
    return {
        "verdicts": dict(sorted(verdicts.items())),
        "growth": {name: _interval("growth", growth[name]) for name in counterparts if name in growth},
        **{key: _text(summary.get(key)) for key in ("state", "method")},
    }


def _by_length(key: str, values: dict[str, Any]) -> list[tuple[int, Any]]:
    if len(values) > MOST_LENGTHS:
        raise ForeignError(f"{key} has {len(values)} lengths, more than the limit of {MOST_LENGTHS}")
    for text in values:
        if not re.fullmatch("[1-9][0-9]{0,8}", text):
            raise ForeignError(f"{key}.{_name(text)} is not a length in steps")
    return [(int(text), value) for text, value in values.items()]


def _interval(key: str, values: Any) -> dict[str, float | None] | None:
    """Returns ``value``, ``low`` and ``high``; both ends are None unless the value lies between them."""
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ForeignError(f"{key} must be an object with an interval, got {type(values).__name__}")
    value, low, high = (_number(key, values.get(name)) for name in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None or not low <= value <= high:
        low = high = None
    return {"value": value, "low": low, "high": high}


def _check_config(config: dict[str, Any]) -> None:
    """Checks size, depth and names, level by level: recursion could exceed Python's limit."""
    level: list[Any] = [config]
    items = 0
    for _ in range(DEEPEST):
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        for name in (name for node in level if isinstance(node, dict) for name in node):
            _name(name)
        items += len(inner)
        level = [value for value in inner if isinstance(value, dict | list)]
        if items > MOST_ITEMS:
            raise ForeignError(f"config has more than {MOST_ITEMS:,} items")
        if not level:
            return
    raise ForeignError(f"config has more than {DEEPEST} levels")


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the object under this key, or an empty one."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _name(name: str) -> str:
    if not name.isprintable():
        raise ForeignError(f"a name has unprintable characters: {one_line(name[:20])}")
    if len(name) > LONGEST_NAME:
        raise ForeignError(f"a name has {len(name)} characters, more than the limit of {LONGEST_NAME}: {name[:20]}…")
    return name


def _text(value: Any) -> str | None:
    return one_line(value) if isinstance(value, str) else None


def _number(key: str, value: Any) -> float | None:
    """Returns the number, or None if it is missing or not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ForeignError(f"{key} must be a number, got {type(value).__name__}")
    if value < 0 and "error" in key:
        raise ForeignError(f"{key} must not be negative, got {value:.3g}")
    if not abs(value) < LARGEST:
        return None
    return 0.0 if 0 < abs(value) < SMALLEST else value

"""What a ``results.json`` says, whoever wrote it: each value that a report uses is of its type and within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json
from qat_ste.base.text import one_line
from qat_ste.report.files import no_link
from qat_ste.report.tables import METRICS, OF_LAYER, added, table_rows

SCHEMA = 1
MOST_COUNTERPARTS, MOST_METRICS = 50, 100
MOST_ITEMS, DEEPEST = 10_000, 30  # items of a configuration, and how deep they lie
LONGEST_NAME, LONGEST_TITLE = 200, 100
LARGEST, SMALLEST = 1e100, 1e-100  # in between, ratios and squares of numbers are numbers
NUMBERS = ("steps", "wall_seconds", "cpu_count", "quantized_weights", "lr_factor")
TEXTS = ("equivalence", "device", "command")


class ForeignError(ValueError):
    """It is not qat-run's; says why."""


def read_results(folder: Path) -> dict[str, Any]:
    """The content. Of what a report uses, all is there; what is absent, or is no finite number, is None or empty.

    Raises:
        OSError: there is no such file, or it is a link or too large.
        ValueError: it is no JSON.
        ForeignError: it is not qat-run's.
    """
    results = read_json(no_link(folder / "results.json"))
    if not isinstance(results, dict):
        raise ForeignError(f"{type(results).__name__} in place of an object")
    sections = {key: results.get(key) for key in ("config", "reference", "counterparts")}
    missing = [key for key, value in sections.items() if not isinstance(value, dict) or not value]
    if missing:
        raise ForeignError("no " + ", ".join(missing))
    if results.get("schema", SCHEMA) != SCHEMA:
        raise ForeignError(f"schema {results['schema']} where {SCHEMA} is known")
    _check_config(results["config"])
    counterparts, verdict = results["counterparts"], _object(results, "verdict")
    ratios = {key: _number(key, verdict.get(key)) for key in ("ste_over_jitter", "naive_over_jitter")}
    metrics = _metrics(_object(results, "metrics"))
    rows = table_rows(metrics)
    if len(counterparts) > MOST_COUNTERPARTS:
        raise ForeignError(f"{len(counterparts)} counterparts where {MOST_COUNTERPARTS} are the most")
    return (
        results
        | {key: _number(key, results.get(key)) for key in NUMBERS}
        | {key: _text(results.get(key)) for key in TEXTS}
        | {"versions": {_name(key): one_line(str(v)[:LONGEST_NAME]) for key, v in _object(results, "versions").items()}}
        | {"choices": {k: _name(v) for k, v in _object(results, "choices").items() if isinstance(v, str)}}
        | {"metrics": metrics}
        | {"reference": _member("reference", results["reference"], rows)}
        | {"counterparts": {_name(name): _member(name, numbers, rows) for name, numbers in counterparts.items()}}
        | {"verdict": {"statement": _text(verdict.get("statement")), **ratios}}
    )


def _metrics(metrics: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Their titles; those of 0.1.0 where there are none."""
    if len(metrics) > MOST_METRICS:
        raise ForeignError(f"{len(metrics)} metrics where {MOST_METRICS} are the most")
    for name, about in metrics.items():
        if not isinstance(about, dict) or not isinstance(about.get("title"), str) or name == "layers":
            raise ForeignError(f"metrics.{_name(name)} is no metric with a title")
    titles = {_name(name): one_line(about["title"], LONGEST_TITLE) for name, about in metrics.items()}
    return {name: {"title": title} for name, title in (titles or METRICS).items()}


def _member(member: str, values: Any, rows: dict[str, str]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ForeignError(f"{member} is {type(values).__name__} in place of an object")
    layers, of_layer = {}, OF_LAYER | added(rows)
    for layer, numbers in _object(values, "layers").items():
        if not isinstance(numbers, dict):
            raise ForeignError(f"{member}.layers is not of objects")
        layers[_name(layer)] = {key: _number(f"{member}.layers.{key}", numbers.get(key)) for key in of_layer}
    return {key: _number(f"{member}.{key}", values.get(key)) for key in rows} | {"layers": layers}


def _check_config(config: dict[str, Any]) -> None:
    """Walks through it without recursion."""
    level: list[Any] = [config]
    items = 0
    for _ in range(DEEPEST):
        inner = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        for name in (name for node in level if isinstance(node, dict) for name in node):
            _name(name)
        items += len(inner)
        level = [value for value in inner if isinstance(value, dict | list)]
        if items > MOST_ITEMS:
            raise ForeignError(f"config has more than {MOST_ITEMS} items")
        if not level:
            return
    raise ForeignError(f"config is nested more than {DEEPEST} deep")


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Empty where it is absent or something else."""
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _name(name: str) -> str:
    if not name.isprintable():
        raise ForeignError(f"a name has characters that cannot be printed: {one_line(name[:20])}")
    if len(name) > LONGEST_NAME:
        raise ForeignError(f"a name of {len(name)} characters where {LONGEST_NAME} are the most: {name[:20]}…")
    return name


def _text(value: Any) -> str | None:
    return one_line(value) if isinstance(value, str) else None


def _number(key: str, value: Any) -> float | None:
    """The number, None where it is absent or not finite."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ForeignError(f"{key} is {type(value).__name__} in place of a number")
    if value < 0 and "error" in key:
        raise ForeignError(f"{key} is {value:.3g}, and no distance is negative")
    if not abs(value) < LARGEST:
        return None
    return 0.0 if 0 < abs(value) < SMALLEST else value

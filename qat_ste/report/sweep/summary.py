"""Writes the numbers of many runs as one small JSON file, to keep in a repository."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json, write
from qat_ste.report.seeds import Summary
from qat_ste.report.sweep.claims import Claim, orders
from qat_ste.report.sweep.findings import Findings
from qat_ste.report.sweep.groups import Group
from qat_ste.report.sweep.paper_table import Measured

SCHEMA = 1


def write_summary(findings: Findings, path: Path) -> None:
    """Writes ``summary``: keys in the report's order, each innermost list on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, _formatted(summary(findings)) + "\n")


def summary(findings: Findings) -> dict[str, Any]:
    """Collects numbers as [mean, sd, n] with six significant digits, claims, machine and versions."""
    machines = [run.machine for group in findings.groups for run in group.runs]
    rows: dict[str, dict[str, Any]] = {}
    for group in findings.groups:
        counterparts = {
            name: {key: _triple(cell) for key, cell in metrics.items()}
            for name, metrics in findings.measured[group.setup][group.row].items()
        }
        rows.setdefault(group.setup, {})[group.row] = _conditions(group) | {"counterparts": counterparts}
    return {
        "schema": SCHEMA,
        "runs": len(machines),
        "wall_seconds": _rounded(math.fsum(run.wall_seconds or 0 for g in findings.groups for run in g.runs)),
        "devices": _distinct(machine["device"] for machine in machines),
        "cpu_count": _distinct(machine["cpu_count"] for machine in machines),
        "versions": {
            package: _distinct(machine["versions"].get(package) for machine in machines)
            for package in sorted({package for machine in machines for package in machine["versions"]})
        },
        "metrics": findings.added,
        "experiments": rows,
        "orders": orders(findings.claims),
        "claims": [{key: _rounded(value) for key, value in asdict(claim).items()} for claim in findings.claims],
    }


def read_summary(path: Path) -> tuple[dict[str, Any], Measured, list[Claim]]:
    """Reads a summary file; returns its content, numbers and claims."""
    content = read_json(path)
    measured: Measured = {
        setup: {
            row: {
                name: {key: Summary(*triple) if triple else None for key, triple in metrics.items()}
                for name, metrics in about["counterparts"].items()
            }
            for row, about in rows.items()
        }
        for setup, rows in content["experiments"].items()
    }
    return content, measured, [Claim(**claim) for claim in content["claims"]]


def _conditions(group: Group) -> dict[str, Any]:
    trains = [run.config.get("train") for run in group.runs]
    shares = [train.get("share") for train in trains if isinstance(train, dict)]
    return {
        "seeds": [run.seed for run in group.runs],
        "steps": _distinct(run.steps for run in group.runs),
        "reproduce": _distinct(run.choices.get("reproduce") for run in group.runs),
        "fraction_of_epochs": _distinct(share for share in shares if isinstance(share, int | float)),
        "equivalence": _distinct(run.equivalence for run in group.runs),
        "wall_seconds": _rounded(math.fsum(run.wall_seconds or 0 for run in group.runs)),
        "devices": _distinct(run.machine["device"] for run in group.runs),
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Returns the distinct values that are not None."""
    return list(dict.fromkeys(value for value in values if value is not None))


def _triple(cell: Summary | None) -> list[Any] | None:
    return None if cell is None else [_rounded(cell.mean), _rounded(cell.sd), cell.n]


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _formatted(value: Any, indent: int = 0) -> str:
    """Formats JSON with innermost lists on one line."""
    inner = " " * (indent + 1)
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {_formatted(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(inner + _formatted(item, indent + 1) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)

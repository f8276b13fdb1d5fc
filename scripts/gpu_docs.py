#!/usr/bin/env python3
"""Write docs/gpu.md from docs/gpu/record.json, the record of scripts/gpu_check.py on a GPU.

python scripts/gpu_docs.py            write the page; without a record it says that nothing has run on a GPU
python scripts/gpu_docs.py --check    exit with 1 if the page is stale
"""

from __future__ import annotations

import json
import sys
from typing import Any

from docs_page import DOCS, filled, parser, publish
from gpu_check import PARTS
from qat_ste.report.writers import markdown_lines

RECORD = DOCS / "gpu" / "record.json"
NOTHING = """**No line of this project has run on a GPU.** What exists for GPUs was written by reading and tested on a
CPU, with stand-ins for CUDA graphs and process groups."""

PURPOSES = {
    "tests": "the tests marked gpu; one lets torch raise at each wait for the GPU between two rows",
    "modes": "compiled and graphed steps against eager ones, in float64 and float32",
    "replica": "a replica: 0, or by how much not, with torch's default and its deterministic kernels",
    "nccl": "one rank, by NCCL with gloo as cuda and cuda:0, and by NCCL alone",
    "memory": "bytes that the metrics hold per weight",
    "metrics": "time of the metrics per step and per row",
    "keras": "keras_cnn, batches of 128, 4 members, in each mode, against plain eager steps",
    "resnet50": "ResNet-50, 224 pixels, batches of 128, 2 members, fp32 and bf16, against plain steps",
    "pipeline": "images per second from files, and the time that training waits for them",
    "imagenet": "200 steps of ResNet-50 on a sample of ImageNet by the command",
}


def page(record: dict[str, Any] | None) -> str:
    """Returns the page as Markdown; None: there is no record of a GPU."""
    limits = [["part", "at most", "what"], *([name, f"{PARTS[name][2]} s", PURPOSES[name]] for name in PARTS)]
    results = NOTHING if record is None or not record["machine"]["gpu"] else _results(record)
    return filled("gpu", results=results, parts=markdown_lines(limits, left=3))


def _results(record: dict[str, Any]) -> str:
    machine = record["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version[0].isdigit())
    blocks = [
        f"On one {machine['gpu']} (driver {machine['driver']}, CUDA {machine['cuda']}, {machine['cores']} CPU cores), "
        f"Python {machine['python']}, {packages}, at commit {machine['commit']}."
    ]
    for name in PARTS:
        blocks.append(f"## {name}")
        part = record["parts"].get(name)
        if part is None:
            blocks.append("Not run.")
            continue
        error = f": {part['error']}" if part.get("error") else ""
        blocks.append(f"{PURPOSES[name][0].upper()}{PURPOSES[name][1:]}. Status: {part['status']}{error}.")
        if part["figures"]:
            lines = [[figure["what"], _shown(figure), figure.get("note", "")] for figure in part["figures"]]
            blocks.append(markdown_lines([["what", "measured", ""], *lines], left=1))
        blocks += [f"- Skipped: {skipped['what']} ({skipped['reason']})." for skipped in part["skipped"]]
    return "\n\n".join(blocks)


def _shown(figure: dict[str, Any]) -> str:
    value, unit = figure["value"], figure.get("unit", "")
    if isinstance(value, str):
        return value
    quartiles = f" ({figure['low']:.4g} to {figure['high']:.4g})" if "low" in figure else ""
    return f"{value:.4g} {unit}".strip() + quartiles


def main() -> int:
    check = parser(__doc__).parse_args().check
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else None
    return publish(DOCS / "gpu.md", page(record), check)


if __name__ == "__main__":
    sys.exit(main())

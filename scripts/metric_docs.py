#!/usr/bin/env python3
"""Writes docs/metrics.md from the classes in qat_ste/divergence.

python scripts/metric_docs.py            write the page
python scripts/metric_docs.py --check    exit code 1 if the page is not up to date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qat_ste.divergence import Metric, metric_titles
from qat_ste.report.tables import table_rows
from qat_ste.report.writers import markdown_lines

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
INTRODUCTION = """\
# Metrics of divergence

Made by `scripts/metric_docs.py` from the classes in `qat_ste/divergence`: change those, not this page.

Each metric compares one counterpart with the reference. It is the ratio of two sums over the quantized weights.
`results.json` holds its value over all weights and by tensor; the value is null where the denominator is 0, for example
if no weight changed level.

* w is a latent weight, Q(w) its quantized value, and max the upper end of the range. R is the weight map M if the
  counterpart was re-mapped, else the identity. The path length is Σ|Δw|/max over all steps.
* The sequence of a weight lists its initial level and each level that it changes to; these changes are the change
  points. In a compressed sequence, each oscillation x, y, x, y is folded into x, y and counted. Compressed sequences
  are stored for about `metrics.sequence_weights` weights, a fixed sample if there are more.
* *Over time*: the metric is also logged to `metrics.jsonl` during training.
* *Of moved weights*: `results.json` also holds the metric over the weights that changed level in either run, as
  `<name>_moved`; weights that never move agree trivially.

The paper is [arXiv 2405.05171](https://arxiv.org/abs/2405.05171).
"""
HEADER = ["in tables", "in results.json", "unit, range", "definition (source)", "over time", "of moved weights"]


def page() -> str:
    """The page in Markdown."""
    table_position = list(table_rows(metric_titles())).index
    lines = []
    for metric in sorted(Metric.registry, key=lambda metric: table_position(metric.name)):
        first_line = (metric.__doc__ or "").partition("\n")[0]
        flags = ["yes" if flag else "no" for flag in (metric.over_time, metric.also_over_moved)]
        lines.append([metric.title, metric.name, metric.unit, first_line, *flags])
    return f"{INTRODUCTION}\n{markdown_lines([HEADER, *lines], left=len(HEADER))}\n"


def main() -> int:
    """Writes or checks the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check whether the page is up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is stale: run python scripts/metric_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Writes docs/metrics.md from the classes in qat_ste/divergence.

python scripts/metric_docs.py            write the page
python scripts/metric_docs.py --check    exit code 1 if the page is not what the classes give
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

Each metric compares one counterpart with the reference. It is a ratio of two sums over the quantized weights, so
`results.json` gives it over all of them and by tensor; null means that there was nothing to count. w is a latent
weight, Q(w) its quantized value, R the weight map M where the counterpart was re-mapped and the identity otherwise,
max the end of the range; the paper is [arXiv 2405.05171](https://arxiv.org/abs/2405.05171). *Over time*: it is in
`metrics.jsonl` too. *Of moved weights*: `results.json` also gives it, under its name and `_moved`, over the weights
that changed their level in either run, since those that never move agree trivially.
"""
HEADER = ["in tables", "in results.json", "unit, range", "what it is (source)", "over time", "of moved weights"]


def page() -> str:
    """The whole page as Markdown."""
    place = list(table_rows(metric_titles())).index
    lines = []
    for metric in sorted(Metric.registry, key=lambda metric: place(metric.name)):
        about = (metric.__doc__ or "").partition("\n")[0]
        flags = ["yes" if flag else "no" for flag in (metric.over_time, metric.also_over_moved)]
        lines.append([metric.title, metric.name, metric.unit, about, *flags])
    return f"{INTRODUCTION}\n{markdown_lines([HEADER, *lines], left=len(HEADER))}\n"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is stale: run python scripts/metric_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measure the cost of a comparison relative to plain fp32 steps of the same network, in turn in one process.

    python scripts/benchmark.py                                          everything: about ten minutes on two cores
    python scripts/benchmark.py --only others --rounds 5                 one section, fewer rounds
    python scripts/benchmark.py --json docs/performance/record.json      the record that docs/performance.md shows

`pip install -e '.[benchmark]'` adds Brevitas to the section `others`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import COMPARISON, LOGGING, METRICS, METRICS_NET, TEXTBOOK, phases, whole_steps
from benchmarks.memory import bytes_held, bytes_of_setting
from benchmarks.networks import OF_GPT, Setting
from benchmarks.others import other_implementations
from benchmarks.scaling import WIDTHS, over_members, over_weights
from benchmarks.timing import Figure
from benchmarks.tuning import rates_together
from qat_ste.base.process import keep_freed_memory

SMALL, FLAX = Setting("small_cnn", 8, 64, 20, 21), Setting("flax_cnn", 28, 128, 3, 15)
KERAS = Setting("keras_cnn", 28, 128, 4, 25)
RESNETS = Setting("resnet18", 224, 16, 1, 7), Setting("resnet50", 64, 16, 1, 9)
MICRO = Setting("gpt_micro", 128, 32, 2, 11)  # tokens a weight as in GPT-2: 0.5 M to 124 M
E2M1 = replace(OF_GPT, levels="fp4_e2m1", ties="even", scale="msamp_power")
STEPS = ((KERAS, 2), (KERAS, 4), (SMALL, 2), (FLAX, 2), *((resnet, 2) for resnet in RESNETS))
BARS: dict[str, dict[str, float]] = defaultdict(
    dict,
    keras_cnn={COMPARISON: 1.05, TEXTBOOK: 0.60, METRICS: 0.03, METRICS_NET: 0.03, LOGGING: 0.02},
    gpt={COMPARISON: 1.05},
    resnet18={METRICS: 0.03, METRICS_NET: 0.03},
)
MOST_MEMBERS = 8


def _rounds(setting: Setting, rounds: int | None) -> Setting:
    return replace(setting, rounds=rounds or setting.rounds)


SECTIONS: dict[
    str, Callable[[int | None], Iterable[Iterable[Figure]]]
] = {  # by number of rounds; None: each setting's default
    "steps": lambda rounds: (whole_steps(_rounds(setting, rounds), n, BARS[setting.network]) for setting, n in STEPS),
    "language": lambda rounds: (
        [*whole_steps(_rounds(MICRO, rounds), 2, BARS["gpt"], levels), bytes_of_setting(MICRO, levels)]
        for levels in (OF_GPT, E2M1)
    ),
    "phases": lambda rounds: (
        phases(_rounds(setting, rounds or 9), BARS[setting.network]) for setting in (SMALL, KERAS, FLAX, *RESNETS)
    ),
    "others": lambda rounds: (other_implementations(_rounds(KERAS, rounds), compiled) for compiled in (False, True)),
    "weights": lambda rounds: (over_weights(width, steps, rounds or 5) for width, steps in WIDTHS.items()),
    "members": lambda rounds: [over_members(_rounds(replace(KERAS, steps=2, rounds=11), rounds), MOST_MEMBERS)],
    "memory": lambda rounds: [bytes_held()],
    "tuning": lambda rounds: (
        [rates_together(_rounds(replace(setting, rounds=5), rounds), steps)]
        for setting, steps in ((SMALL, 100), (KERAS, 20))
    ),
}


def machine() -> dict[str, Any]:
    """Returns what the figures depend on: processor, threads, versions."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text() if info.is_file() else "", re.MULTILINE)
    processor = names[0].strip() if names else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": processor, "threads": torch.get_num_threads(), **versions}


def line_of(figure: Figure) -> str:
    """Formats a figure as a line for the terminal."""
    if figure.value is None:
        return f"{figure.what}: {figure.note}"
    factor = 100 if figure.unit == "%" else 1
    quartiles = "" if figure.low is None else f"  ({figure.low * factor:.4g} to {(figure.high or 0) * factor:.4g})"
    bar = figure.bar
    met = "" if bar is None else f"  {'met' if figure.value <= bar else 'MISSED'}: {bar * factor:g}"
    return f"{figure.value * factor:10.4g} {figure.unit} {figure.what}{quartiles}{met}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="measure this section; repeatable")
    parser.add_argument("--rounds", type=int, help="rounds of each section (default: its own number)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()  # as qat-run does
    record: dict[str, Any] = {"schema": 1, "machine": machine(), "sections": {}}
    for name in arguments.only or SECTIONS:
        print(f"\n{name}")
        figures, setting = [], ""
        for figure in chain.from_iterable(SECTIONS[name](arguments.rounds)):
            if figure.setting != setting:
                setting = figure.setting
                print(setting)
            print(line_of(figure), flush=True)
            figures.append(asdict(figure))
        record["sections"][name] = figures
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

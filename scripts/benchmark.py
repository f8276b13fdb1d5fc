#!/usr/bin/env python3
"""What a comparison costs, as ratios to plain fp32 steps of the same network, measured in turn in one process.

    python scripts/benchmark.py                                          everything: some ten minutes on two cores
    python scripts/benchmark.py --only others --rounds 5                 one section, rougher
    python scripts/benchmark.py --json docs/performance/record.json      the record that docs/performance.md shows
    python scripts/benchmark.py --profile trace.json                     a trace of ten steps, for chrome://tracing

`pip install -e '.[benchmark]'` adds Brevitas to the section others.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import COMPARISON, LOGGING, METRICS, METRICS_NET, TEXTBOOK, parts, whole_steps
from benchmarks.memory import bytes_held
from benchmarks.networks import Members, Setting
from benchmarks.others import other_ways
from benchmarks.scaling import WIDTHS, over_members, over_weights
from benchmarks.timing import Figure, Stopwatch
from qat_ste.base.process import keep_freed_memory

SMALL, FLAX = Setting("small_cnn", 8, 64, 20, 21), Setting("flax_cnn", 28, 128, 3, 15)
KERAS = Setting("keras_cnn", 28, 128, 4, 25)
RESNETS = Setting("resnet18", 224, 16, 1, 7), Setting("resnet50", 64, 16, 1, 9)
BARS = {
    "keras_cnn": {COMPARISON: 1.05, TEXTBOOK: 0.60, METRICS: 0.03, METRICS_NET: 0.03, LOGGING: 0.02},
    "resnet18": {METRICS: 0.03, METRICS_NET: 0.03},
}
MOST_MEMBERS = 8
Section = Callable[[int | None], Iterable[Figure]]


def _shortened(setting: Setting, rounds: int | None) -> Setting:
    return replace(setting, rounds=rounds or setting.rounds)


def steps_section(rounds: int | None) -> Iterator[Figure]:
    for setting, members in ((KERAS, 2), (KERAS, 4), (SMALL, 2), (FLAX, 2), *((resnet, 2) for resnet in RESNETS)):
        yield from whole_steps(_shortened(setting, rounds), members, BARS.get(setting.network, {}))


def parts_section(rounds: int | None) -> Iterator[Figure]:
    for setting in (SMALL, KERAS, FLAX, *RESNETS):
        yield from parts(_shortened(setting, rounds or 9), BARS.get(setting.network, {}))


def others_section(rounds: int | None) -> Iterator[Figure]:
    for compiled in (False, True):
        yield from other_ways(_shortened(KERAS, rounds), compiled)


def weights_section(rounds: int | None) -> Iterator[Figure]:
    for width, steps in WIDTHS.items():
        yield from over_weights(width, steps, rounds or 5)


def members_section(rounds: int | None) -> Iterator[Figure]:
    yield from over_members(_shortened(replace(KERAS, steps=2, rounds=11), rounds), MOST_MEMBERS)


SECTIONS: dict[str, Section] = {
    "steps": steps_section,
    "parts": parts_section,
    "others": others_section,
    "weights": weights_section,
    "members": members_section,
    "memory": lambda rounds: bytes_held(),
}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": model, "threads": torch.get_num_threads(), **versions}


def profile(path: Path) -> None:
    """Writes a Chrome trace of ten steps of two members with all metrics."""
    members = Members(KERAS.build(), 2, KERAS.batch(), Stopwatch(), metrics=True)
    members.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(10):
            members.step()
    profiler.export_chrome_trace(str(path))
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def told(figure: Figure) -> str:
    """A line for the terminal."""
    if figure.value is None:
        return f"{figure.what}: {figure.note}"
    factor = 100 if figure.unit == "%" else 1
    between = "" if figure.low is None else f"  ({figure.low * factor:.4g} to {(figure.high or 0) * factor:.4g})"
    met = figure.bar is None or figure.value <= figure.bar
    bar = "" if figure.bar is None else f"  {'met' if met else 'MISSED'}: {figure.bar * factor:g}"
    return f"{figure.value * factor:10.4g} {figure.unit} {figure.what}{between}{bar}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; may be given several times")
    parser.add_argument("--rounds", type=int, help="for all sections, instead of their own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the record goes")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a trace and measure nothing")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    keep_freed_memory()  # as qat-run does
    if arguments.profile:
        profile(arguments.profile)
        return
    record: dict[str, Any] = {"schema": 1, "machine": machine(), "sections": {}}
    for name in arguments.only or SECTIONS:
        print(f"\n{name}")
        figures, setting = [], ""
        for figure in SECTIONS[name](arguments.rounds):
            if figure.setting != setting:
                setting = figure.setting
                print(setting)
            print(told(figure), flush=True)
            figures.append(asdict(figure))
        record["sections"][name] = figures
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

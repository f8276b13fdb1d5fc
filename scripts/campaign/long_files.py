"""Reports on runs of very many rows: bounded memory and time, and no extreme is lost on the way to a figure."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from qat_ste.report.run.figures import alignment_error
from qat_ste.report.run.run_files import RunFiles
from qat_ste.report.style import STYLE

from .command import run, start
from .fault import Fault, Outcome

MOST_BYTES = 400 * 2**20  # of qat-report, however long metrics.jsonl is
MOST_SECONDS = 2e-4  # a row, beside half a minute
KEY, LABEL = "jitter/weight_alignment_error", "jitter"


@dataclass(frozen=True)
class LongFile:
    """``qat-report`` on a finished run whose ``metrics.jsonl`` has been made that long."""

    name: str
    rows: int = 1_000_000
    group: str = "endurance"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        folder, outcome = workplace / "run", Outcome()
        made = run(
            f"hydra.run.dir={folder}", "train.steps=40", "metrics.every=1", "logger=none", "counterparts=[ste,jitter]",
            cwd=workplace,
        )  # fmt: skip
        planted = sorted(draw.sample(range(1, self.rows), 2))
        outcome.broken += [made.err] if made.code else []
        outcome.figures["size of metrics.jsonl (MiB)"] = _lengthen(folder, self.rows, planted) / 2**20
        began = time.monotonic()
        process = start(str(folder), program="qat-report", cwd=workplace, stderr=subprocess.STDOUT)
        peak = _peak(process.pid, lambda: process.poll() is None)
        told = process.communicate()[0].strip()
        outcome.delay = seconds = time.monotonic() - began
        outcome.figures |= {"highest memory (MiB)": peak / 2**20, "time (s)": seconds}
        if process.returncode or told != str((folder / "report.html").resolve()):
            outcome.broken.append(f"exit code {process.returncode}: {told[-300:]}")
        if peak > MOST_BYTES:
            outcome.broken.append(f"took {peak / 2**20:.0f} MiB")
        if seconds > 30 + MOST_SECONDS * self.rows:
            outcome.broken.append(f"took {seconds:.0f} s")
        drawn = _drawn(folder)
        outcome.figures["points drawn"] = float(len(drawn))
        for step, value in zip(planted, (7.5, 1e-9), strict=True):
            if drawn.get(step) != value:
                outcome.broken.append(f"{value} at step {step} is not in the figure")
        return outcome


def _lengthen(folder: Path, rows: int, planted: list[int]) -> int:
    """Repeats the run's last rows; the bytes written. The planted rows have the highest and the lowest error."""
    path = folder / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kind = [row for row in found if KEY in row][10:]
    texts = [json.dumps(row | {"step": "@", KEY: "#"}) for row in kind]
    values = [str(row[KEY]) for row in kind]
    special = dict(zip(planted, ("7.5", "1e-09"), strict=True))
    with path.open("w", encoding="utf-8") as file:
        for step in range(1, rows + 1):
            place = step % len(texts)
            file.write(texts[place].replace('"@"', str(step)).replace('"#"', special.get(step, values[place])) + "\n")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (folder / "results.json").write_text(json.dumps(results | {"steps": rows}), encoding="utf-8")
    return path.stat().st_size


def _peak(pid: int, alive: Callable[[], bool]) -> int:
    """Most bytes that the process had resident at once."""
    peak = 0
    while alive():
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.05)
    return peak


def _drawn(folder: Path) -> dict[int, float]:
    """Points of the line in the figure."""
    with mpl.rc_context(STYLE):
        (axes,) = alignment_error(RunFiles(folder)).axes
    (line,) = (line for line in axes.lines if line.get_label() == LABEL)
    return {int(step): float(value) for step, value in np.asarray(line.get_xydata())}


LONG_FILES: tuple[Fault, ...] = (LongFile("report on 1,000,000 rows"),)

"""What a part of the check found, written to a file after each figure so that a killed part keeps its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import spread


@dataclass
class Findings:
    """Figures of one part, and what it skipped.

    Args:
        file: rewritten after each figure.
        device: of the check.
        data: folder that holds ``imagenet-sample``.
    """

    file: Path
    device: torch.device
    data: Path
    figures: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether this is the real check and not its rehearsal on a CPU."""
        return self.device.type == "cuda"

    def size(self, on_gpu: int, on_cpu: int) -> int:
        """A size that is small in a rehearsal."""
        return on_gpu if self.on_gpu else on_cpu

    def add(self, what: str, value: Any, unit: str = "", note: str = "") -> None:
        """Adds a figure; of a list of rounds, median and quartiles."""
        low = high = None
        if isinstance(value, Sequence) and not isinstance(value, str):
            value, low, high = spread(value)
        figure = {"what": what, "value": value, "low": low, "high": high, "unit": unit, "note": note}
        self.figures.append({key: content for key, content in figure.items() if content not in (None, "")})
        self.save()
        print(f"  {what}: {value:.6g} {unit}" if isinstance(value, float) else f"  {what}: {value} {unit}", flush=True)

    def skip(self, what: str, reason: str) -> None:
        """Names something that could not be checked."""
        self.skipped.append({"what": what, "reason": reason})
        self.save()
        print(f"  {what}: skipped, {reason}", flush=True)

    def attempt(self, what: str, check: Callable[[], object]) -> bool:
        """Runs a check and returns whether it worked; its failure is a figure, and the checks after it run."""
        try:
            check()
            return True
        except Exception as error:  # the point is to find out what it raises
            self.add(what, "failed", note=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
            return False

    def save(self) -> None:
        """Writes everything to the file."""
        self.file.write_text(json.dumps({"figures": self.figures, "skipped": self.skipped}), encoding="utf-8")

    def wait(self) -> None:
        """Waits for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

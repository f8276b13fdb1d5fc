"""Numbers that are none and tensors that are odd: the right result, or one line that names what is wrong."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qat_ste import Comparison
from qat_ste.estimators import Ste, Tanh
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.loggers.files import RunFolder

from .command import run, unreadable
from .fault import Fault, Outcome
from .odd_networks import NETWORKS
from .slow_training import STEPS, Batches, batches, compared, difference, over_range, slow

SAVED_EVERY = 3  # steps
MEMBERS = ("reference", "ste", "naive", "jitter")
REFUSALS = (ValueError, TypeError, FloatingPointError)


class _Times(torch.autograd.Function):
    """A number as it is, its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@dataclass
class Spoiling:
    """Cross entropy, of which at one step one member's value, or its gradient alone, is multiplied by a factor."""

    step: int
    member: int
    factor: float
    gradient: bool
    calls: int = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        if not torch.is_grad_enabled():
            return loss
        step, member = divmod(self.calls, len(MEMBERS))
        self.calls += 1
        if (step + 1, member) != (self.step, self.member):
            return loss
        return _Times.apply(loss, self.factor) if self.gradient else loss * self.factor


@dataclass(frozen=True)
class Spoiled:
    """A loss, or a gradient and so a weight, that is not finite at a random step of a random member.

    ``log_every``: steps between rows; ``last``: it is the last step.
    """

    name: str
    gradient: bool
    log_every: int = 1
    last: bool = False
    group: str = "numbers"
    rounds: int = 4

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        step = STEPS if self.last else draw.randrange(1, STEPS)
        member, factor, seed = draw.randrange(len(MEMBERS)), draw.choice([math.nan, math.inf]), draw.randrange(1000)
        settings: dict[str, Any] = {"log_every": self.log_every, "seed": seed}
        undisturbed = compared(**settings)
        began, outcome = time.monotonic(), Outcome()
        try:
            self._train(workplace, settings, loss=Spoiling(step, member, factor, self.gradient))
            outcome.broken.append(f"{factor} of {MEMBERS[member]} at step {step} went unnoticed")
        except FloatingPointError as error:
            outcome.ended = _general(str(error))
            if MEMBERS[member] not in str(error) or "\n" in str(error):
                outcome.broken.append(f"does not name {MEMBERS[member]}: {error}")
        outcome.delay = time.monotonic() - began
        rows = _rows(workplace)
        if rows != undisturbed.rows[: len(rows)] or any(row["step"] > step for row in rows):
            outcome.broken.append(f"rows after step {step}, or others than without the fault")
        outcome.lost_rows = sum(row["step"] < step - 2 * self.log_every for row in undisturbed.rows[len(rows) :])
        found = Checkpoints(workplace, {})
        if found.step != (step - (0 if self.gradient and step % SAVED_EVERY else 1)) // SAVED_EVERY * SAVED_EVERY:
            outcome.broken.append(f"the last checkpoint is of step {found.step}, the fault of {step}")
        if not _finite(found.take()):
            outcome.broken.append("numbers in the checkpoint that are not finite")
        continued = self._train(workplace, settings)
        outcome.differing = differing(continued, undisturbed)
        return outcome

    def _train(self, folder: Path, settings: dict[str, Any], **changes: Any) -> Comparison:
        checkpoints = Checkpoints(folder, {}, every_steps=SAVED_EVERY)
        files = RunFolder(folder, checkpoints.rows)
        try:
            return compared(on_row=files.log_row, checkpoints=checkpoints, **(settings | changes))
        finally:
            files.close(0)


@dataclass(frozen=True)
class Odd:
    """A network that is out of the ordinary: its numbers are those of a slow, plain training of the same.

    ``twin``: an ordinary network whose numbers have to be the same, bit for bit.
    """

    name: str
    network: str
    twin: str | None = None
    data: Callable[[], Batches] = batches
    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str = "numbers"
    rounds: int = 3

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        seed, data, outcome = draw.randrange(1000), self.data(), Outcome()
        found = compared(NETWORKS[self.network], data, seed, **self.changes)
        outcome.broken += [f"{name} is not finite" for name in not_finite(found)]
        loss = self.changes.get("loss", F.cross_entropy)
        exclude = self.changes.get("exclude", ())
        reference, naive = (
            slow(NETWORKS[self.network], data, seed, estimator, loss, exclude) for estimator in (Tanh(5.5), Ste())
        )
        for name, slowly in (("reference", reference), ("naive", naive)):
            losses = [row[f"{name}/train_loss"] for row in found.rows if f"{name}/train_loss" in row]
            if not torch.allclose(torch.tensor(losses), torch.tensor(slowly.losses), rtol=1e-4, atol=1e-6):
                outcome.broken.append(f"losses of {name} are not those of a slow training")
        distance, way = (
            sum(over_range(values, reference.ranges) for values in some)
            for some in ([difference(reference.weights, naive.weights)], naive.ways)
        )
        measured = found.counterparts["naive"].weight_alignment_error
        if not math.isclose(measured, distance / way, rel_tol=1e-3):
            outcome.broken.append(f"alignment error {measured} where a slow training gives {distance / way}")
        if self.twin:
            outcome.differing = differing(found, compared(NETWORKS[self.twin], data, seed, **self.changes))
        return outcome


@dataclass(frozen=True)
class Refused:
    """What no number can be made of: refused in one line with ``words``, before any row."""

    name: str
    words: str
    network: str = "plain"
    data: Callable[[], Any] = batches
    changes: Mapping[str, Any] = field(default_factory=dict)
    group: str = "numbers"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        rows: list[Any] = []
        outcome = Outcome()
        try:
            compared(NETWORKS[self.network], self.data(), draw.randrange(1000), on_row=rows.append, **self.changes)
            outcome.broken.append("was accepted")
        except REFUSALS as error:
            outcome.ended = f"{type(error).__name__}: {error}"
        if self.words not in outcome.ended or "\n" in outcome.ended:
            outcome.broken.append(f"no line with {self.words!r}: {outcome.ended}")
        if rows:
            outcome.broken.append(f"{len(rows)} rows before")
        return outcome


@dataclass(frozen=True)
class Exploding:
    """The real command with numbers that no training survives."""

    name: str
    overrides: Sequence[str]
    group: str = "numbers"
    rounds: int = 2

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        folder = workplace / "run"
        done = run(
            *self.overrides, f"hydra.run.dir={folder}", "train.steps=60", "metrics.every=4", "checkpoint.every_steps=1",
            "logger=none", f"train.seed={draw.randrange(1000)}", cwd=workplace,
        )  # fmt: skip
        outcome = Outcome(done.line if done.code else "survived", delay=done.seconds)
        outcome.broken += done.faults() + (unreadable(folder) if folder.exists() else [])
        rows = _rows(folder)
        if done.code == 0:
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            rows += [results["reference"], *results["counterparts"].values()]
        elif done.code == 1:
            outcome.ended = _general(done.err.strip())
            if len(done.err.strip().splitlines()) != 1 or " step " not in done.err:
                outcome.broken.append(f"not one line that names the step: {done.err}")
            checkpoint = folder / "checkpoint.pt"
            state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
            outcome.broken += [] if _finite(state) else ["numbers in the checkpoint that are not finite"]
        if any(value is None for row in rows for key, value in row.items() if key.endswith("_loss")):
            outcome.broken.append("a loss that is null")
        return outcome


def differing(found: Comparison, other: Comparison) -> int:
    """How many numbers of two comparisons are not the same, bit for bit."""
    return sum(a != b for a, b in zip(_numbers(found), _numbers(other), strict=True))


def not_finite(found: Comparison) -> list[str]:
    return [name for name, value in _numbers(found) if isinstance(value, float) and not math.isfinite(value)]


def _numbers(found: Comparison) -> list[tuple[str, Any]]:
    members = {"reference": vars(found.reference)} | {name: vars(own) for name, own in found.counterparts.items()}
    by_row = {f"row {number}": row for number, row in enumerate(found.rows)}
    whole = members | by_row | {"verdict": vars(found.verdict)}
    return [
        (f"{name}.{key}", value) for name, values in whole.items() for key, value in values.items() if key != "layers"
    ]


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _finite(state: Any) -> bool:
    """Whether all tensors of a nested state are."""
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(map(_finite, values))


def _general(line: str) -> str:
    """The line without what differs by round: numbers, and who it was."""
    words = line.split("; ")[0].split()
    return " ".join("…" if word in MEMBERS or word.strip(".,").isdigit() else word for word in words)


def _of_type(dtype: torch.dtype, of_targets: bool = False) -> Batches:
    return [(x, y.to(dtype)) if of_targets else (x.to(dtype), y) for x, y in batches()]


def _arrays() -> list[Any]:
    return [(x.numpy(), y.numpy()) for x, y in batches()]


def _empty() -> Batches:
    return [(x[:0], y[:0]) for x, y in batches()]


def _holes() -> Batches:
    return [(x * math.nan, y) for x, y in batches()]


def _detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets).detach()


def _whole(outputs: Tensor, targets: Tensor) -> Any:
    return 3


NUMBERS: tuple[Fault, ...] = (
    Spoiled("loss not finite", False),
    Spoiled("loss not finite, rows rare", False, log_every=7),
    Spoiled("loss not finite at the last step", False, last=True),
    Spoiled("gradient not finite", True),
    Spoiled("gradient not finite, rows rare", True, log_every=7),
    Spoiled("gradient not finite at the last step", True, last=True),
    Odd("ordinary network", "plain"),
    Odd("all weights zero", "zeros"),
    Odd("all weights equal", "equal"),
    Odd("tensor of one weight", "one weight"),
    Odd("layer without outputs", "no outputs", "plain"),
    Odd("layer without inputs", "no inputs", "plain"),
    Odd("frozen layer", "frozen"),
    Odd("unused layer", "unused"),
    Odd("non-contiguous weights", "transposed", "plain"),
    Odd("channels last", "channels last", "plain"),
    Odd("tied weights", "tied"),
    Odd("float64", "float64", data=partial(_of_type, torch.float64)),
    Odd("batches of one", "plain", data=partial(batches, 1)),
    Odd("scalar outputs", "scalar", data=partial(_of_type, torch.float32, True), changes={"loss": F.mse_loss}),
    Refused("all layers frozen", "0.weight", "all frozen"),
    Refused("no gradient to any quantized layer", "include", "unused", changes={"include": ["beside"]}),
    Refused("tied to a layer that is left out", "2.weight is tied to 1.weight", "tied", changes={"exclude": ["2"]}),
    Refused("only layers without outputs", "no weight to quantize", "no outputs", changes={"include": ["beside"]}),
    Refused("bfloat16", "0.weight must be", "bfloat16", data=partial(_of_type, torch.bfloat16)),
    Refused("float16", "0.weight must be", "float16", data=partial(_of_type, torch.float16)),
    Refused("weights of two types", "last.weight torch.float64", "two types"),
    Refused("weight NaN from the start", "0.weight holds NaN", "nan"),
    Refused("weight infinite from the start", "3.bias holds NaN or infinity", "infinite"),
    Refused("targets of floats", "loss cannot be", data=partial(_of_type, torch.float32, True)),
    Refused("targets of int32", "loss cannot be", data=partial(_of_type, torch.int32, True)),
    Refused("loss of a vector", "loss must", changes={"loss": partial(F.cross_entropy, reduction="none")}),
    Refused("loss of an int", "loss must", changes={"loss": _whole}),
    Refused("loss without gradient", "depend", changes={"loss": _detached}),
    Refused("arrays for tensors", "pairs of tensors", data=_arrays),
    Refused("batches of none", "batches must have inputs", data=_empty),
    Refused("NaN in all images", "look at the first batch", data=_holes),
    Exploding("lr=1e30", ["optimizer.lr=1e30"]),
    Exploding("lr=1e38", ["optimizer.lr=1e38"]),
    Exploding("lr=1e6", ["optimizer.lr=1e6"]),
    Exploding("lr=1e30, Adam", ["optimizer=adam", "optimizer.lr=1e30"]),
    Exploding("lr=1e37, Adam", ["optimizer=adam", "optimizer.lr=1e37"]),
    Exploding("weight decay of 1e30", ["train.weight_decay=1e30"]),
    Exploding("l2 penalty of 1e30", ["train.l2=1e30"]),
)

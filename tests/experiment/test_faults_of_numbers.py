"""Values that are not finite and tensors that are odd: the numbers of a slow training, or one line that says why."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qat_ste import CheckpointSchedule, Comparison
from qat_ste.estimators import Ste, Tanh
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.loggers.files import RunFolder
from tests.experiment import slow_training
from tests.experiment.odd_networks import NETWORKS
from tests.experiment.slow_training import STEPS, batches, compared, difference, over_range, slow

SAVED_EVERY = 3  # steps
MEMBERS = ("reference", "ste", "naive", "jitter")
SPOILED = [
    pytest.param(False, 1, False, id="loss"),
    pytest.param(False, 7, False, id="loss, rows rare"),
    pytest.param(False, 1, True, id="loss, last step"),
    pytest.param(True, 1, False, id="gradient"),
    pytest.param(True, 7, False, id="gradient, rows rare"),
    pytest.param(True, 1, True, id="gradient, last step"),
]


class Times(torch.autograd.Function):
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
    """Cross entropy; at one step one member's value, or its gradient alone, is multiplied by a factor."""

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
        return Times.apply(loss, self.factor) if self.gradient else loss * self.factor


def train(folder: Path, settings: dict[str, Any], **changes: Any) -> Comparison:
    """A comparison that continues from the checkpoint in the folder and leaves its files there."""
    checkpoints = Checkpoints(folder, {}, CheckpointSchedule(every_steps=SAVED_EVERY))
    files = RunFolder(folder, checkpoints.rows)
    try:
        return compared(on_row=files.log_row, checkpoints=checkpoints, **(settings | changes))
    finally:
        files.close(0)


def spoil(folder: Path, gradient: bool, log_every: int, last: bool, seed: int) -> None:
    """A value that is not finite, of a random member at a random step; then the same run without it."""
    draw = random.Random(seed)
    step = STEPS if last else draw.randrange(1, STEPS)
    member, factor = draw.randrange(len(MEMBERS)), draw.choice([math.nan, math.inf])
    settings: dict[str, Any] = {"every": log_every, "seed": draw.randrange(1000)}
    undisturbed = compared(**settings)
    with pytest.raises(FloatingPointError, match=rf"^[^\n]*{MEMBERS[member]}[^\n]*\Z"):
        train(folder, settings, loss=Spoiling(step, member, factor, gradient))
    rows = rows_in(folder)
    assert rows == undisturbed.rows[: len(rows)]
    assert all(row["step"] <= step for row in rows)
    assert all(row["step"] >= step - 2 * log_every for row in undisturbed.rows[len(rows) :]), "rows are lost"
    found = Checkpoints(folder, {})
    assert found.step == (step - (0 if gradient and step % SAVED_EVERY else 1)) // SAVED_EVERY * SAVED_EVERY
    assert finite(found.take())
    assert numbers(train(folder, settings)) == numbers(undisturbed)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finite(state: Any) -> bool:
    """Whether all tensors of a nested state are finite."""
    if isinstance(state, Tensor):
        return bool(state.isfinite().all())
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return all(map(finite, values))


def numbers(found: Comparison) -> dict[str, Any]:
    """All numbers of a comparison by name."""
    whole = {"reference": vars(found.reference)} | {name: vars(own) for name, own in found.counterparts.items()}
    whole |= {f"row {number}": row for number, row in enumerate(found.rows)} | {"verdict": vars(found.verdict)}
    return {f"{name}.{key}": value for name, own in whole.items() for key, value in own.items() if key != "layers"}


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "log_every", "last"), SPOILED)
def test_what_is_not_finite_ends_the_run_and_costs_nothing(tmp_path, gradient, log_every, last):
    spoil(tmp_path, gradient, log_every, last, seed=3)


@pytest.mark.slow
def test_a_fault_that_nobody_notices_is_found(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    spoil(tmp_path / "a", gradient=True, log_every=1, last=True, seed=5)
    monkeypatch.setattr(Spoiling, "__call__", lambda _, *given: F.cross_entropy(*given))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        spoil(tmp_path / "b", gradient=True, log_every=1, last=True, seed=5)


def violations(network: str, twin: str | None = None, seed: int = 5, data: Any = None, **changes: Any) -> list[str]:
    """What is not as in a slow training or, bit for bit, as for the ``twin``, an ordinary network."""
    data = batches() if data is None else data
    found = compared(NETWORKS[network], data, seed, **changes)
    own = numbers(found)
    broken = [name for name, value in own.items() if isinstance(value, float) and not math.isfinite(value)]
    loss = changes.get("loss", F.cross_entropy)
    reference, naive = (slow(NETWORKS[network], data, seed, estimator, loss) for estimator in (Tanh(5.5), Ste()))
    for name, slowly in (("reference", reference), ("naive", naive)):
        losses = [row[f"{name}/train_loss"] for row in found.rows if f"{name}/train_loss" in row]
        if losses != pytest.approx(slowly.losses, rel=1e-4, abs=1e-6):
            broken.append(f"losses of {name}")
    distance, way = (
        sum(over_range(values, reference.ranges) for values in some)
        for some in ([difference(reference.weights, naive.weights)], naive.ways)
    )
    if found.counterparts["naive"].weight_alignment_error != pytest.approx(distance / way, rel=1e-3):
        broken.append("alignment error")
    if twin and own != numbers(compared(NETWORKS[twin], data, seed, **changes)):
        broken.append("twin")
    return broken


def of_type(dtype: torch.dtype, of_targets: bool = False) -> slow_training.Batches:
    return [(x, y.to(dtype)) if of_targets else (x.to(dtype), y) for x, y in batches()]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "twin"),
    [
        *((name, None) for name in ("plain", "zeros", "equal", "one weight", "frozen", "unused", "tied")),
        *((name, "plain") for name in ("no outputs", "no inputs", "transposed", "channels last")),
    ],
)
def test_odd_networks_train_as_a_slow_training_does(network, twin):
    assert violations(network, twin, seed=2) == []


@pytest.mark.slow
def test_odd_batches_train_as_in_a_slow_training():
    assert violations("float64", seed=2, data=of_type(torch.float64)) == []
    assert violations("plain", seed=2, data=batches(1)) == []
    assert violations("scalar", seed=2, data=of_type(torch.float32, True), loss=F.mse_loss) == []


@pytest.mark.slow
def test_numbers_of_another_network_or_training_are_found(monkeypatch):
    assert violations("transposed", "plain") == []
    assert violations("zeros", "plain") == ["twin"]
    monkeypatch.setattr(slow_training, "LR", 0.021)
    assert violations("plain", lr=0.02) == ["losses of reference", "losses of naive", "alignment error"]


REFUSED = [
    ("all frozen", "0.weight", {}),
    ("unused", "include", {"include": ["beside"]}),
    ("tied", "2.weight is tied to 1.weight", {"exclude": ["2"]}),
    ("no outputs", "leave a weight to quantize", {"include": ["beside"]}),
    ("bfloat16", "0.weight must be", {"data": of_type(torch.bfloat16)}),
    ("float16", "0.weight must be", {"data": of_type(torch.float16)}),
    ("two types", "last.weight torch.float64", {}),
    ("nan", "0.weight holds NaN", {}),
    ("infinite", "3.bias holds NaN or infinity", {}),
    ("plain", "loss must be", {"data": of_type(torch.float32, True)}),
    ("plain", "loss must be", {"data": of_type(torch.int32, True)}),
    ("plain", "loss must", {"loss": partial(F.cross_entropy, reduction="none")}),
    ("plain", "loss must", {"loss": lambda outputs, targets: 3}),
    ("plain", "depend", {"loss": lambda outputs, targets: F.cross_entropy(outputs, targets).detach()}),
    ("plain", "pairs of tensors", {"data": [(x.numpy(), y.numpy()) for x, y in batches()]}),
    ("plain", "batches that have inputs", {"data": [(x[:0], y[:0]) for x, y in batches()]}),
    ("plain", "look at the first batch", {"data": [(x * math.nan, y) for x, y in batches()]}),
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("network", "words", "changes"), REFUSED)
def test_what_no_number_can_be_made_of_is_refused_in_one_line_before_any_row(network, words, changes):
    rows: list[Any] = []
    with pytest.raises((ValueError, TypeError, FloatingPointError)) as refusal:
        compared(NETWORKS[network], on_row=rows.append, **changes)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert rows == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.lr=1e30"],
        ["optimizer.lr=1e38"],
        ["optimizer.lr=1e6"],
        ["optimizer=adam", "optimizer.lr=1e30"],
        ["optimizer=adam", "optimizer.lr=1e37"],
        ["train.weight_decay=1e6"],
        ["train.l2=1e6"],
    ],
)
def test_numbers_that_no_training_survives(qat_run, overrides):
    length = ("train.steps=60", "metrics.every=4", "checkpoint.every_steps=1", "logger=none")
    done = qat_run(*overrides, *length)
    rows, checkpoint = rows_in(done.folder), done.folder / "checkpoint.pt"
    if done.code == 0:
        results = done.read("results.json")
        rows += [results["reference"], *results["counterparts"].values()]
    else:
        assert done.code == 1
        assert len(done.err.strip().splitlines()) == 1
        assert " step " in done.err
        assert not checkpoint.exists() or finite(torch.load(checkpoint, weights_only=True))
    assert not any(value is None for row in rows for key, value in row.items() if key.endswith("_loss"))

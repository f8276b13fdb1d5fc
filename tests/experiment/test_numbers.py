"""Numbers that are none, tensors that are odd: the right result, or one line that names what is wrong."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import CheckpointSchedule
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.lockstep import Record
from qat_ste.experiment.passes import checked_loss
from tests.experiment.tiny import ADAM, batches, network, run

MEMBERS = 4


def plain() -> nn.Module:
    return network(dropout=0.0)


class Spoiled(torch.autograd.Function):
    """The loss as it is, its gradient times a number."""

    @staticmethod
    def forward(ctx, loss, factor):
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class SpoilsGradient:
    """A loss whose gradient is not finite for one member (of four) at one step, counted from 1.

    Before the first step it is called ``checks`` times on copies.
    """

    def __init__(self, step: int, member: int, factor: float = math.nan, checks: int = 2) -> None:
        self.call, self.factor, self.calls = (step - 1) * MEMBERS + member, factor, -1 - checks

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        if torch.is_grad_enabled():
            self.calls += 1
            loss = Spoiled.apply(loss, self.factor) if self.calls == self.call else loss
        return loss


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize(("number", "name"), [(0, "reference"), (1, "ste"), (3, "jitter")])
def test_a_weight_that_is_not_finite_after_the_last_step_is_no_result(number, name, factor):
    rows = []
    with pytest.raises(FloatingPointError, match=rf"a weight of {name} or .* after step 6; first tensor .*: 0.bias"):
        run(steps=6, every=1, loss=SpoilsGradient(6, number, factor), on_row=rows.append, validation=None)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_what_is_not_finite_is_neither_evaluated_nor_saved(tmp_path):
    """The loss is still finite when the checkpoint is due, and so it is where the network is evaluated."""
    rows = []
    for changes, known in (({"validation": None}, 0), ({"steps_per_epoch": 7}, 1)):
        folder = tmp_path / str(known)
        folder.mkdir()
        with pytest.raises(FloatingPointError, match="a weight of naive .* between steps"):
            run(
                steps=20, every=20, loss=SpoilsGradient(14, 2, checks=4), on_row=rows.append,
                checkpoints=Checkpoints(folder, {}, CheckpointSchedule(every_steps=7)), **changes,
            )  # fmt: skip
        assert len(rows) == known
        found = Checkpoints(folder, {})
        assert found.step == 7
        assert all(
            values.isfinite().all()
            for member in found.take()["members"].values()
            for values in member["model"].values()
            if isinstance(values, torch.Tensor)
        )


def test_a_way_beyond_all_numbers_is_no_error_of_zero():
    with pytest.raises(FloatingPointError, match="no longer finite after step 1; .*: the way of 5.weight"):
        run(steps=1, lr=1e37, validation=None, schedule=lambda step: 1.0)


def test_a_validation_loss_that_is_not_finite_is_named():
    images, targets = batches(1)[0]
    with pytest.raises(FloatingPointError, match="reference/validation_loss is nan at step 4"):
        run(steps=4, validation=[(images * math.nan, targets)])


def test_infinities_that_were_there_before_may_stay():
    def masked() -> nn.Module:
        model = plain()
        model.register_buffer("mask", torch.full((2,), -math.inf))
        return model

    assert run(build_model=masked, steps=3).rows == run(build_model=plain, steps=3).rows


def test_an_optimizer_that_cannot_step_is_told():
    with pytest.raises(
        ValueError,
        match=r"optimizer must be one that can take a step with lr=\S+ \(RuntimeError: value cannot be converted",
    ):
        run(lr=1e38, optimizer=ADAM, steps=1, schedule=lambda step: 1.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (partial(F.cross_entropy, reduction="none"), "must "),
        (lambda outputs, targets: 3, "must .*3|int"),
        (lambda outputs, targets: torch.tensor(3), "must .*3|int"),
        (lambda outputs, targets: outputs.mean().detach(), "depends on the weights"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets.float()), "Long or Byte, but got Float"),
        (lambda outputs, targets: F.cross_entropy(outputs, targets + 9), "int64.*out of bounds"),
    ],
)
def test_a_loss_that_is_none_is_named(loss, message):
    with pytest.raises((TypeError, ValueError), match=f"^loss .*({message})"):
        run(loss=loss)


@pytest.mark.parametrize(
    ("outputs", "loss", "error", "message"),
    [
        (torch.zeros(2), lambda outputs, targets: outputs, ValueError, r"scalar .*, got 'float32 of shape \(2,\)"),
        (torch.zeros(2), lambda outputs, targets: outputs @ targets[:, None], ValueError, "accepts float32 of shape"),
        (torch.zeros(()), lambda outputs, targets: outputs, ValueError, "depends on the weights"),
    ],
)
def test_a_loss_is_looked_at_wherever_it_is_taken(outputs, loss, error, message):
    with pytest.raises(error, match=message):
        checked_loss(loss, outputs, torch.zeros(3))
    with torch.no_grad():
        assert checked_loss(lambda outputs, targets: outputs, torch.ones(()), torch.zeros(3)) == 1


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([(x.numpy(), y) for x, y in batches(1)], ValueError, "batches must be batches that are pairs of tensors"),
        ([(x, y, y) for x, y in batches(1)], ValueError, "batches must be batches that are pairs of tensors"),
        ([(x[:0], y[:0]) for x, y in batches(1)], ValueError, r"batches that have inputs, got \(0, 1, 6, 6\)"),
        ([(x * math.nan, y) for x, y in batches(1)], FloatingPointError, "nan at step 1; .* look at the first batch"),
    ],
)
def test_batches_that_are_none_are_named(data, error, message):
    with pytest.raises(error, match=message):
        run(batches=data)


class TwoHeads(nn.Module):
    """A network with another layer beside it, used or not."""

    def __init__(self, beside: nn.Module, use: bool = False) -> None:
        super().__init__()
        self.net, self.beside, self.use = plain(), beside, use

    def forward(self, x):
        out = self.net(x)
        return out + self.beside(x.new_zeros(len(x), self.beside.in_features)).sum() if self.use else out


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("empty", [(4, 0), (0, 4)])
def test_a_layer_without_weights_changes_nothing(empty):
    beside = partial(TwoHeads, nn.Linear(*empty, bias=False), True)
    found, alone = run(build_model=beside, steps=5), run(build_model=lambda: TwoHeads(nn.Identity()), steps=5)
    assert found.quantized_weights == alone.quantized_weights
    assert found.rows == alone.rows
    with pytest.raises(ValueError, match="patterns that leave a weight to quantize"):
        run(build_model=beside, include=["beside"])


def _spoiled(value: float, name: str = "0.weight") -> nn.Module:
    model = plain()
    model.get_parameter(name).data.view(-1)[3] = value
    return model


def _frozen(*names: str) -> nn.Module:
    model = plain()
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 4))
    model[2].weight = model[1].weight
    return model


class Half(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.last = plain(), nn.Linear(4, 4, dtype=dtype)

    def forward(self, x):
        return self.last(self.net(x).to(self.last.bias.dtype)).float()


@pytest.mark.parametrize(
    ("build", "message", "changes"),
    [
        (partial(_spoiled, math.nan), "build_model: 0.weight holds NaN or infinity", {}),
        (partial(_spoiled, math.inf, "1.bias"), "build_model: 1.bias holds NaN or infinity", {}),
        (partial(_frozen, "0", "5"), "include: 0.weight and all other quantized weights are frozen, so", {}),
        (_tied, "include: 2.weight is tied to 1.weight, which is quantized: quantize both", {"exclude": ["2"]}),
        (partial(Half, torch.float64), "one type .* net.0.weight is torch.float32 .* last.weight torch.float64", {}),
        (
            partial(Half, torch.bfloat16),
            r"last.weight must be float32 or float64 \(use autocast for lower precision\), got torch.bfloat16",
            {},
        ),
        (partial(TwoHeads, nn.Linear(3, 3)), "the loss depends on none of the quantized", {"include": ["beside"]}),
    ],
)
def test_weights_that_cannot_be_compared_are_named(build, message, changes):
    with pytest.raises(ValueError, match=message):
        run(build_model=build, **changes)


def test_rows_are_kept_lean_and_whole():
    kept = Record(torch.zeros(1, 1), [{"a": 0.1}], [], [(1, [0.1], [None])], ['{"step": 1, "x": 0.1}', '{"step": 2}'])
    again = Record(torch.zeros(1, 1), [])
    again.restore(kept.plain(), kept.losses)
    assert again.rows == kept.rows == [{"step": 1, "x": 0.1}, {"step": 2}]
    assert json.loads(kept.plain())["rows"] == kept.rows

"""The checks before training find nothing in sound models, and cost a few steps."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import Checkpoints
from qat_ste.experiment.preflight import Preflight
from tests.experiment.test_user_models import Attention, replica_error
from tests.experiment.tiny import batches, network, run


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 4))
    model[3].weight = model[1].weight
    return model


class Rows(nn.Module):
    """A sequence model on the rows of an image."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 4)

    def forward(self, x):
        out = self.body(x[:, 0])
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


class Segmenter(nn.Module):
    """Down, up, a skip connection, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(9, 4, 1)

    def forward(self, x):
        inner = self.inner(self.down(x).relu()).relu()
        return {"classes": self.head(torch.cat([self.up(inner), x], 1)).mean((2, 3))}


class Depthwise(nn.Module):
    """A depthwise separable block with an average of its own weights, updated in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(),
            nn.Linear(128, 4),
        )  # fmt: skip
        self.register_buffer("average", self.net[5].bias.detach().clone())

    def forward(self, x):
        if self.training:
            self.average.lerp_(self.net[5].bias.detach(), 0.1)
        return self.net(x)


def frozen_batch_norm() -> nn.Module:
    model = network()
    model[1].eval().requires_grad_(False)
    return model


def transformer() -> nn.Module:
    return Rows(nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2), 6)


SOUND = {
    "dropout and batch norm": network,
    "layer norm": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8), nn.Flatten(), nn.Linear(128, 4)),
    "tied weights": tied,
    "attention": Attention,
    "transformer": transformer,
    "LSTM": lambda: Rows(nn.LSTM(6, 8, batch_first=True, num_layers=2, dropout=0.2), 8),
    "float64": lambda: network().double(),
    "channels last": lambda: network().to(memory_format=torch.channels_last),
    "frozen batch norm": frozen_batch_norm,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 8, 3)), nn.Flatten(), nn.Linear(128, 4)
    ),
    "outputs in a dictionary": Segmenter,
    "depthwise with an average": Depthwise,
}


LINEAR = ("LSTM", "weight norm", "tied weights", "attention", "transformer")
INCLUDED = {key: ["Linear"] for key in LINEAR} | {"outputs in a dictionary": ["Conv2d", "ConvTranspose2d"]}


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_train_without_an_alarm(name, tmp_path, caplog):
    def loss(outputs, targets):
        return F.cross_entropy(outputs["classes"] if isinstance(outputs, dict) else outputs, targets)

    data = [(inputs.double() if name == "float64" else inputs, targets) for inputs, targets in batches()]
    with caplog.at_level(logging.WARNING):
        comparison = run(
            build_model=SOUND[name], batches=data, validation=data[:2], loss=loss, steps=10, steps_per_epoch=5,
            include=INCLUDED.get(name, ["Conv2d", "Linear"]),
            counterparts=["ste", "replica"], checkpoints=Checkpoints(tmp_path),
        )  # fmt: skip
    assert not caplog.records
    assert replica_error(comparison) == 0
    assert comparison.counterparts["ste"].weight_alignment_error > 0


def test_it_changes_no_number(monkeypatch):
    checked = run(steps=20, steps_per_epoch=5)
    monkeypatch.setattr(Preflight, "run", lambda *_: None)
    assert run(steps=20, steps_per_epoch=5).rows == checked.rows


def test_it_takes_few_steps(monkeypatch):
    passes = []
    step = Preflight._step
    monkeypatch.setattr(Preflight, "_step", lambda *arguments: passes.append(1) or step(*arguments))
    run(steps=5)
    assert len(passes) == 2

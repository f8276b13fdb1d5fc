"""Networks on 8x8 digits whose tensors are out of the ordinary, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]


def plain() -> nn.Module:
    """The ordinary one."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))


def filled(value: float) -> nn.Module:
    model = plain()
    nn.init.constant_(model.get_parameter("0.weight"), value)
    return model


def spoiled(value: float, name: str) -> nn.Module:
    model = plain()
    model.get_parameter(name).data.view(-1)[3] = value
    return model


def frozen(*names: str) -> nn.Module:
    model = plain()
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return model


def transposed() -> nn.Module:
    """Both matrices lie the other way round in memory."""
    model = plain()
    for name in ("0.weight", "3.weight"):
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.transpose(-1, -2).contiguous().transpose(-1, -2)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model[2].weight = model[1].weight
    return model


class Beside(nn.Module):
    """The ordinary network with a layer beside it, used or not; the draw of the ordinary one comes first."""

    def __init__(self, inputs: int, outputs: int, used: bool) -> None:
        super().__init__()
        self.model, self.used = plain(), used
        self.beside = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out + self.beside(x.new_zeros(len(x), self.beside.in_features)).sum() if self.used else out


class TwoTypes(nn.Module):
    """Its last layer is of another floating-point type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first, self.last, self.dtype = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10, dtype=dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu().flatten(1).to(self.dtype))
        return out.float()


NETWORKS: dict[str, Build] = {
    "plain": plain,
    "zeros": partial(filled, 0.0),
    "equal": partial(filled, 0.1),
    "one weight": lambda: nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 10)),
    "no outputs": partial(Beside, 4, 0, True),
    "no inputs": partial(Beside, 0, 4, True),
    "unused": partial(Beside, 3, 3, False),
    "frozen": partial(frozen, "0"),
    "all frozen": partial(frozen, "0", "3"),
    "transposed": transposed,
    "channels last": lambda: plain().to(memory_format=torch.channels_last),
    "tied": tied,
    "float64": lambda: plain().double(),
    "bfloat16": lambda: plain().bfloat16(),
    "float16": lambda: plain().half(),
    "two types": partial(TwoTypes, torch.float64),
    "nan": partial(spoiled, math.nan, "0.weight"),
    "infinite": partial(spoiled, math.inf, "3.bias"),
    "scalar": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)),
}

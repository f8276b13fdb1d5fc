"""A comparison small enough for a test: a few images, a few steps."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import compare
from qat_ste.estimators import Tanh
from tests.arguments import sorted_arguments

SGD = partial(torch.optim.SGD, momentum=0.9)
ADAM = partial(torch.optim.Adam, betas=(0.9, 0.95), eps=1e-7)


def network(dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(8 * 16, 4)
    )


def batches(count: int = 5, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose class is the brightest quarter."""
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, size, 1, 6, 6, generator=generator)
    quarters = images.unfold(3, 3, 3).unfold(4, 3, 3).mean((5, 6)).reshape(count, size, 4)
    return list(zip(images, quarters.argmax(2), strict=True))


def run(**changes):
    arguments = {
        "loss": F.cross_entropy, "bits": 2, "estimator": Tanh(5.5), "optimizer": SGD, "lr": 0.05, "steps": 40,
        "validation": batches(2),
    }  # fmt: skip
    build = changes.pop("build_model", network)
    data = changes.pop("batches", batches())
    return compare(build, data, **sorted_arguments(arguments | changes))

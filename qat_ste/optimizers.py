"""Which adjustment keeps the equivalence, by optimizer; and SGD as Keras and TensorFlow define momentum."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import optim


class Equivalence(StrEnum):
    """What turns a run with an estimator into its STE counterpart (arXiv 2405.05171, theorems 1 and 2)."""

    REMAP = "remap"  # initial weights M(w₀), learning rate α·η on quantized tensors
    KEEP = "keep"  # nothing: steps do not change when a weight's gradient history is rescaled
    EXACT = "exact"  # nothing: steps depend on the gradient's sign alone, the runs are identical
    NONE = "none"  # no adjustment is known


KNOWN: dict[type[optim.Optimizer], Equivalence] = {
    optim.SGD: Equivalence.REMAP,
    optim.Adam: Equivalence.KEEP,
}


def equivalence_of(optimizer: optim.Optimizer) -> Equivalence:
    """The adjustment known for this optimizer's class or the nearest of its bases; ``none`` where there is none."""
    return next((KNOWN[kind] for kind in type(optimizer).__mro__ if kind in KNOWN), Equivalence.NONE)


class KerasSGD(optim.SGD):
    """SGD with the learning rate inside the velocity: v <- μ·v - η·G, w <- w + v, as Keras and TensorFlow have it.

    torch.optim.SGD has v <- μ·v + G, w <- w - η·v: another run as soon as the learning rate changes.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ValueError("KerasSGD takes no closure")
        lrs = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            grads = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if grads:
                torch._foreach_mul_(grads, group["lr"])
            group["lr"] = 1.0
        super().step()
        for group, lr in zip(self.param_groups, lrs, strict=True):
            group["lr"] = lr

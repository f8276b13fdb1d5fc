"""SGD as Keras and TensorFlow define momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import optim


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

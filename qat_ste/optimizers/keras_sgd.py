"""SGD with momentum as Keras and TensorFlow define it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import optim

from qat_ste.base.errors import ArgumentError


class KerasSGD(optim.SGD):
    """SGD with the learning rate inside the velocity, as in Keras: v <- μ·v - η·(G + λ·w), w <- w + v.

    torch.optim.SGD has v <- μ·v + G, w <- w - η·v; the two differ once the learning rate changes.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ArgumentError("closure", closure, "None")
        settings = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        for group, (lr, weight_decay) in zip(self.param_groups, settings, strict=True):
            grads = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            if grads:
                torch._foreach_mul_(grads, lr)
            group["lr"], group["weight_decay"] = 1.0, lr * weight_decay
        super().step()
        for group, (lr, weight_decay) in zip(self.param_groups, settings, strict=True):
            group["lr"], group["weight_decay"] = lr, weight_decay

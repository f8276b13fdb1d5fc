"""Lion: steps along the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import optim
from torch.optim.optimizer import ParamsT

from qat_ste.base.errors import ArgumentError


class Lion(optim.Optimizer):
    """w <- w - η·(sign(β₁·m + (1 - β₁)·G) + λ·w), m <- β₂·m + (1 - β₂)·G (Chen et al. 2023, arXiv 2302.06675).

    Args:
        weight_decay: λ, decoupled from the gradient.

    Raises:
        ArgumentError: a β is not in [0, 1).
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError("betas", betas, "numbers from 0 to below 1")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ArgumentError("closure", closure, "None")
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(momentum.lerp(parameter.grad, 1 - beta1).sign_(), alpha=-lr)
                momentum.lerp_(parameter.grad, 1 - beta2)

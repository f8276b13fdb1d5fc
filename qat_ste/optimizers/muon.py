"""Muon for networks with convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim.optimizer import ParamsT

from qat_ste.base.errors import ArgumentError, Number, require


class Muon(optim.Optimizer):
    """Momentum whose matrices are orthogonalized (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Each tensor is reshaped to a matrix (first dimension, rest): a kernel has a row per output; a bias has a single
    column, so its momentum is scaled to a norm of about 0.7. Steps are 0.2·√(longer side)·η times the orthogonalized
    matrix; they move weights about as far as Adam at the same η (Liu et al. 2025, arXiv 2502.16982). torch.optim.Muon
    supports only matrices and orthogonalizes in bfloat16; this class computes in the precision of the weights.

    Args:
        weight_decay: decoupled from the gradient.
        ns_steps: number of Newton-Schulz iterations.

    Raises:
        ArgumentError: momentum is not in [0, 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        require(Number(0, 1, real=True, below=True), momentum=momentum)
        settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "ns_steps": ns_steps}
        super().__init__(params, {"lr": lr, **settings})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ArgumentError("closure", closure, "None")
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(velocity, momentum) if group["nesterov"] else velocity
                matrix = update.reshape(len(update) if update.ndim else 1, -1)
                parameter.mul_(1 - lr * group["weight_decay"])
                scale = 0.2 * math.sqrt(max(matrix.shape))
                parameter.add_(_orthogonalize(matrix, group["ns_steps"]).view_as(parameter), alpha=-lr * scale)


def _orthogonalize(matrix: Tensor, steps: int) -> Tensor:
    """Approximates U·Vᵀ for matrix = U·S·Vᵀ by a quintic iteration; singular values end at about 0.7 to 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T.contiguous() if tall else x

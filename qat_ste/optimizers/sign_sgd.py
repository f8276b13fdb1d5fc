"""Sign descent: steps of equal size along the gradient's sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import optim
from torch.optim.optimizer import ParamsT

from qat_ste.base.errors import ArgumentError


class SignSGD(optim.Optimizer):
    """w <- w - η·sign(G) (Bernstein et al. 2018, arXiv 1802.04434, algorithm 1)."""

    def __init__(self, params: ParamsT, lr: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ArgumentError("closure", closure, "None")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])

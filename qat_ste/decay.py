"""Weight decay, in the gradient or beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn, optim

from qat_ste.fake_quantize import plain_name

ById = Mapping[int, Tensor]  # by id of a parameter, what decays in place of its own values


@dataclass(frozen=True)
class _Decay:
    strength: float
    include: Sequence[str] = ("*",)

    def _chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        for name, parameter in model.named_parameters():
            chosen = any(fnmatchcase(plain_name(name), pattern) for pattern in self.include)
            if chosen and parameter.grad is not None:
                yield parameter


class L2Penalty(_Decay):
    """strength·Σw² over the latent values of the parameters whose names match a pattern (arXiv 2405.05171).

    Its gradient 2·strength·w is added to what the estimator lets through, and is not multiplied by g itself.
    """

    @torch.no_grad()
    def add_gradient(self, model: nn.Module, instead: ById | None = None) -> None:
        chosen = list(self._chosen(model))
        if chosen:
            values = [(instead or {}).get(id(parameter), parameter) for parameter in chosen]
            gradients = [cast(Tensor, parameter.grad) for parameter in chosen]
            torch._foreach_add_(gradients, values, alpha=2 * self.strength)


class WeightDecay(_Decay):
    """w <- w - η·strength·w before the optimizer's step, whose gradients do not see it.

    Decoupled as in AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), but for any optimizer; with the η of each
    parameter at this step.
    """

    @torch.no_grad()
    def shrink(self, model: nn.Module, optimizer: optim.Optimizer, instead: ById | None = None) -> None:
        chosen = {id(parameter) for parameter in self._chosen(model)}
        for group in optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if id(parameter) in chosen]
            if parameters:
                values = [(instead or {}).get(id(parameter), parameter) for parameter in parameters]
                torch._foreach_add_(parameters, values, alpha=-group["lr"] * self.strength)

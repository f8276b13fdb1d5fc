"""Weight decay, in the gradient or beside it, and what an STE counterpart needs instead to decay as its reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn, optim

from qat_ste.divergence import Part, pieces_of
from qat_ste.equivalence import SteEquivalent

Decaying = Mapping[int, Tensor]  # by id of a parameter, what decays in place of its own values


@dataclass(frozen=True)
class _Decay:
    strength: float
    include: Sequence[str] = ("*",)

    def _chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        for name, parameter in model.named_parameters():
            name = name.replace("parametrizations.", "").removesuffix(".original")
            if parameter.grad is not None and any(fnmatchcase(name, pattern) for pattern in self.include):
                yield parameter


class L2Penalty(_Decay):
    """strength·Σw² over the latent values of the parameters whose names match a pattern (arXiv 2405.05171).

    Its gradient 2·strength·w is added to what the estimator lets through, and is not multiplied by g itself.
    """

    @torch.no_grad()
    def add_gradient(self, model: nn.Module, instead: Decaying | None = None) -> None:
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
    def shrink(self, model: nn.Module, optimizer: optim.Optimizer, instead: Decaying | None = None) -> None:
        chosen = {id(parameter) for parameter in self._chosen(model)}
        for group in optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if id(parameter) in chosen]
            if parameters:
                values = [(instead or {}).get(id(parameter), parameter) for parameter in parameters]
                torch._foreach_add_(parameters, values, alpha=-group["lr"] * self.strength)


def mirrored(v: Tensor, parts: Sequence[Part], pair: SteEquivalent, remapped: bool) -> Tensor:
    """What has to decay in place of the STE's quantized weights v for the pair to decay alike; flat, as v.

    With a decay the reference's weights move by dw = -η·(g·G + λ·w). Its counterpart is to follow v = M(w), and
    M' = α/g, so dv = M'·dw = -α·η·(G + λ·w/g): at the learning rate α·η it is D = w/g(w), w = M⁻¹(v), that decays
    in place of v. Where g is 0, M is the identity and D = v/α. A decay beside the gradient is mirrored alike.

    Where nothing is re-mapped, since factors on gradients cancel, g·G + λ·v and G + λ·v/g make the same step, so
    D = v/g(v) in the gradient (v where g is 0), and what decays beside it is v itself.
    """
    found = torch.zeros_like(v)
    for piece in pieces_of(parts, 0, parts[-1].stop):
        own = pair.on(piece.quantizer)
        some = v[piece.where]
        w = own.inverse(some) if remapped else some
        g = own.estimator.derivative(w, piece.quantizer)
        found[piece.where] = w / torch.where(g > 0, g, own.lr_factor if remapped else 1.0)
    return found

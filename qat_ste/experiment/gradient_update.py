"""What is done to gradients and weights before an optimizer step: clipping, L2 penalty, weight decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from qat_ste.fake_quant.fake_quantize import plain_name
from qat_ste.fake_quant.flat_layout import Part, pieces_of
from qat_ste.theory.equivalence import SteEquivalent

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


PLACES = ("latent", "quantized")


@dataclass(frozen=True)
class Clipping:
    """Scales all gradients of a model by one factor, so that their norm is at most ``norm`` (arXiv 1211.5063).

    Args:
        norm: > 0.
        at: the gradients of quantized tensors whose norm counts: ``latent``, after the estimator, as in
            ``torch.nn.utils.clip_grad_norm_``; or ``quantized``, before it, the same for every estimator.

    Raises:
        ValueError: an argument is out of its bounds.
    """

    norm: float
    at: str = "latent"

    def __post_init__(self) -> None:
        if not 0 < self.norm < math.inf:
            raise ValueError(f"norm must be a positive finite number, got {self.norm!r}")
        if self.at not in PLACES:
            raise ValueError(f"at must be one of {', '.join(PLACES)}, got {self.at!r}")

    @property
    def before_estimator(self) -> bool:
        return self.at == "quantized"

    @torch.no_grad()
    def clip(self, model: nn.Module, factors: Mapping[int, Tensor]) -> None:
        """After the backward pass; ``factors`` multiply gradients, by id of the parameter, as far as the norm goes."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        counted = [cast(Tensor, parameter.grad) * factors.get(id(parameter), 1) for parameter in parameters]
        clip_grads_with_norm_(parameters, self.norm, get_total_norm(counted))


def mirrored(v: Tensor, parts: Sequence[Part], pair: SteEquivalent, remapped: bool) -> tuple[Tensor, Tensor]:
    """D(v), which has to decay in place of the STE's quantized weights v for the pair to decay alike, and g at M⁻¹(v).

    With a decay the reference's weights move by dw = -η·(g·G + λ·w). Its counterpart is to follow v = M(w), and
    M' = α/g, so dv = M'·dw = -α·η·(G + λ·w/g): at the learning rate α·η it is D = w/g(w), w = M⁻¹(v), that decays
    in place of v. Where g is 0, M is the identity and D = v/α. A decay beside the gradient is mirrored alike.

    Where nothing is re-mapped, since factors on gradients cancel, g·G + λ·v and G + λ·v/g make the same step, so
    D = v/g(v) in the gradient (v where g is 0), and what decays beside it is v itself.

    Both are flat, as v.
    """
    decaying, factors = torch.zeros_like(v), torch.zeros_like(v)
    for piece in pieces_of(parts, 0, parts[-1].stop):
        own = pair.on(piece.quantizer)
        w = own.inverse(v[piece.where]) if remapped else v[piece.where]
        g = own.estimator.derivative(w, piece.quantizer)
        decaying[piece.where] = w / torch.where(g > 0, g, own.lr_factor if remapped else 1.0)
        factors[piece.where] = g
    return decaying, factors

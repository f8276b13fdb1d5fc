"""Changes of gradients and weights before an optimizer step: clipping, L2 penalty, weight decay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from qat_ste.base.errors import POSITIVE, STRENGTH, OneOf
from qat_ste.base.parameters import Parameters, parameter
from qat_ste.base.sections import CLIP_AT, MATRICES, NAMES
from qat_ste.fake_quant.fake_quantize import plain_name
from qat_ste.fake_quant.flat_layout import Chunk
from qat_ste.theory.equivalence import SteEquivalent

ById = Mapping[int, Tensor]  # by id of a parameter: the values that decay in place of its own


@dataclass(frozen=True)
class _Decay(Parameters):
    strength: float = parameter(0.0, STRENGTH, "")
    include: Sequence[str] = parameter(("*",), NAMES, "")

    def _chosen(self, model: nn.Module) -> Iterator[nn.Parameter]:
        for name, weights in model.named_parameters():
            named = any(fnmatchcase(plain_name(name), pattern) for pattern in self.include)
            if (named or (MATRICES in self.include and weights.ndim >= 2)) and weights.grad is not None:
                yield weights


class L2Penalty(_Decay):
    """strength·Σw² over the latent values of the parameters whose names match a pattern (arXiv 2405.05171).

    Its gradient 2·strength·w is added after the estimator, so it is not multiplied by g.
    """

    @torch.no_grad()
    def add_gradient(self, model: nn.Module, instead: ById | None = None) -> None:
        """Adds the gradient of the penalty; ``instead`` holds values that decay in place of a parameter's own."""
        chosen = list(self._chosen(model))
        if chosen:
            values = [(instead or {}).get(id(parameter), parameter) for parameter in chosen]
            gradients = [cast(Tensor, parameter.grad) for parameter in chosen]
            torch._foreach_add_(gradients, values, alpha=2 * self.strength)


class WeightDecay(_Decay):
    """w <- w - η·strength·w before the optimizer's step, with each parameter's own η; gradients stay as they are.

    Decoupled weight decay as in AdamW (arXiv 1711.05101), for any optimizer.
    """

    @torch.no_grad()
    def shrink(self, model: nn.Module, optimizer: optim.Optimizer, instead: ById | None = None) -> None:
        """Shrinks the weights; ``instead`` holds values that decay in place of a parameter's own."""
        chosen = {id(parameter) for parameter in self._chosen(model)}
        for group in optimizer.param_groups:
            parameters = [parameter for parameter in group["params"] if id(parameter) in chosen]
            if parameters:
                values = [(instead or {}).get(id(parameter), parameter) for parameter in parameters]
                torch._foreach_add_(parameters, values, alpha=-group["lr"] * self.strength)


@dataclass(frozen=True)
class Clipping(Parameters):
    """Scales all gradients of a model by one factor, so that their norm is at most ``norm`` (arXiv 1211.5063).

    Args:
        norm: > 0.
        at: the gradients of quantized tensors whose norm counts: ``latent``, after the estimator, as in
            ``torch.nn.utils.clip_grad_norm_``; or ``quantized``, before it, the same for every estimator.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """

    norm: float = parameter(1.0, POSITIVE, "")
    at: str = parameter("latent", OneOf(CLIP_AT), "")

    @property
    def before_estimator(self) -> bool:
        """Whether the norm is that of gradients before the estimator."""
        return self.at == "quantized"

    @torch.no_grad()
    def clip(self, model: nn.Module, factors: Mapping[int, Tensor]) -> None:
        """Clips after the backward pass; ``factors``, by id of the parameter, scale gradients in the norm only."""
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        counted = [cast(Tensor, parameter.grad) * factors.get(id(parameter), 1) for parameter in parameters]
        clip_grads_with_norm_(parameters, self.norm, get_total_norm(counted))


def mirrored(v: Tensor, chunks: Sequence[Chunk], equivalent: SteEquivalent, remapped: bool) -> tuple[Tensor, Tensor]:
    """D(v), the values that decay in place of the STE's weights v so that both runs decay alike; and g at M⁻¹(v).

    With decay the reference moves by dw = -η·(g·G + λ·w). The counterpart follows v = M(w) with M' = α/g, so
    dv = M'·dw = -α·η·(G + λ·w/g): at the learning rate α·η, D = w/g(w) with w = M⁻¹(v) decays in place of v. Where
    g is 0, M is the identity and D = v/α. Decay beside the gradient is mirrored in the same way.

    Without re-mapping, factors on gradients cancel: g·G + λ·v and G + λ·v/g make the same step. So D = v/g(v) in
    the gradient (v where g is 0), and v itself decays beside it.

    Both results are flat like v.
    """
    decaying, factors = torch.zeros_like(v), torch.zeros_like(v)
    for chunk in chunks:
        here = equivalent.on(chunk.quantizer)
        w = here.inverse(v[chunk.where]) if remapped else v[chunk.where]
        g = here.estimator.derivative(w, chunk.quantizer)
        decaying[chunk.where] = w / torch.where(g > 0, g, here.lr_factor if remapped else 1.0)
        factors[chunk.where] = g
    return decaying, factors

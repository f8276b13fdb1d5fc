"""Gradient clipping by norm, and where that norm is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from qat_ste.fake_quantize import quantized_tensors

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
        gradients = {id(parameter): parameter.grad for parameter in model.parameters() if parameter.grad is not None}
        counted = {key: gradient * factors.get(key, 1) for key, gradient in gradients.items()}
        if self.before_estimator:
            counted |= {key: gradient for key, gradient in take_gradients(model).items() if key in gradients}
        clip_grads_with_norm_(model.parameters(), self.norm, get_total_norm(list(counted.values())))


def take_gradients(model: nn.Module) -> dict[int, Tensor]:
    """The gradients that came in at the quantized weights since they were last taken, by id of the latent weight."""
    found: dict[int, Tensor] = {}
    for _, parameter, fake_quantize in quantized_tensors(model):
        gradient = fake_quantize.take_gradient()
        if gradient is not None:  # tied weights have one parametrization for each place
            found[id(parameter)] = found[id(parameter)] + gradient if id(parameter) in found else gradient
    return found

"""Gradient clipping by norm, and where that norm is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

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

"""The step of a counterpart whose scales move as the reference's do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qat_ste.fake_quant.flat_weights import FlatWeights
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent
from qat_ste.theory.moving_scales import follow_scale, reference_weights


@torch.no_grad()
def follow_scales(weights: FlatWeights, before: Tensor, now: Sequence[Quantizer], equivalent: SteEquivalent) -> None:
    """Sets scales and weights to what they are if the scales are those of the reference's weights M⁻¹(v).

    Where a scale stays, the weights keep the optimizer's step bit for bit.

    Args:
        weights: after the optimizer's step, which also trained learned scales.
        before: the flat weights before the step.
        now: the quantizer of each chunk before the step.
    """
    scales, chunks = weights.scales, weights.all_chunks
    assert scales is not None
    w, w_next = (torch.empty_like(before, dtype=torch.float64) for _ in range(2))
    for chunk, old in zip(chunks, now, strict=True):
        v, dv = before[chunk.where], (weights.buffer - before)[chunk.where]
        w[chunk.where], w_next[chunk.where] = reference_weights(equivalent, v, dv, old)
    w_next = w_next.to(before.dtype)  # rounded as the reference's are: the largest weight is its scale exactly
    weights.rescale(scales.computed(w_next))
    for chunk, old in zip(chunks, now, strict=True):
        v, then = weights.buffer[chunk.where], chunk.quantizer
        change = follow_scale(equivalent, w[chunk.where], w_next[chunk.where].double(), old, then)
        moved = torch.where(change == 0, v, (v.double() + change).to(v.dtype))
        v.copy_(_kept_inside(moved, w_next[chunk.where], then.max))


def _kept_inside(v: Tensor, w_next: Tensor, scale: float | Tensor) -> Tensor:
    """Weights of the range, with the largest on its end: rounding must not freeze what trains in the reference."""
    inside = w_next.abs() <= scale
    return torch.where(inside, torch.minimum(torch.maximum(v, -torch.as_tensor(scale)), torch.as_tensor(scale)), v)

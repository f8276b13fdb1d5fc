"""What a moving scale adds to the equivalence: the term c(x)·ds, and one update that is right for every scale.

With the scale s, x = w/s, and m the map of the grid in units of the scale, v = s·m(w/s) moves by

    dv = m'(x)·dw + c(x)·ds,    c(x) = m(x) - x·m'(x).

The STE at the learning rate α·η makes the first term alone. Under SGD its error is Σ c(x)·Δs, however small η is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent


def drift(equivalent: SteEquivalent, w: Tensor, quantizer: Quantizer) -> Tensor:
    """c(x), by which M(w) moves per unit of the scale while w stays; 0 for saturated weights.

    Args:
        w: latent weights, in float64 or float32.
        quantizer: with their scales.
    """
    here = equivalent.on(quantizer)
    c = (here.weight_map(w.double()) - w.double() * here.slope(w.double())) / quantizer.max
    return torch.where(quantizer.alive(w), c, 0.0).to(w.dtype)


def reference_weights(equivalent: SteEquivalent, v: Tensor, dv: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """w = M⁻¹(v), and the w⁺ that the reference reaches while its counterpart moves by dv: w + (g(w)/α)·dv.

    Both in float64; w⁺ = w + dv where g is 0.
    """
    here = equivalent.on(quantizer)
    w = here.inverse(v.double())
    return w, w + dv.double() / here.slope(w)


def follow_scale(equivalent: SteEquivalent, w: Tensor, w_next: Tensor, now: Quantizer, then: Quantizer) -> Tensor:
    """s⁺·m(w⁺/s⁺) - s·m(w⁺/s), what a step adds to v beside dv; c(x)·ds to first order, and 0 where s⁺ = s.

    Taken at w⁺ the sum is s⁺·m(w⁺/s⁺) up to the error that the STE makes with a fixed scale too; taken at w it would
    lack the product of dw and ds. The map of the outermost interval goes on beyond the old range for a weight that had
    a gradient, since the largest weight of a group lies on its end.

    Args:
        w, w_next: the reference's weights before and after the step, in float64.
        now, then: quantizers with the scales before and after it.
    """
    before = torch.where(now.alive(w), equivalent.on(_unbounded(now)).weight_map(w_next), w_next)
    change = equivalent.on(then).weight_map(w_next) - before
    return torch.where(torch.as_tensor(then.max != now.max), change, 0.0)


def _unbounded(quantizer: Quantizer) -> Quantizer:
    other = copy.copy(quantizer)
    other.saturation = "none"
    return other

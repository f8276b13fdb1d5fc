"""What an STE counterpart can tell of its reference from its own weights, to follow it where the theorem does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qat_ste.divergence import Part, pieces_of
from qat_ste.equivalence import SteEquivalent


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

"""What becomes of an STE counterpart where the reference's estimator changes."""

from __future__ import annotations

import torch

from qat_ste.divergence import pieces_of
from qat_ste.equivalence import SteEquivalent
from qat_ste.member import Member
from qat_ste.optimizers import KerasSGD


@torch.no_grad()
def remap(member: Member, old: SteEquivalent, new: SteEquivalent) -> None:
    """From v = M(w) of the old estimator to that of the new one, and the momentum along with it.

    The reference goes on with its momentum b, a sum of g·G. Its counterpart has moved by M'·dw, M' = α/g, and is to
    do so with the new M': its way per step is multiplied by r = M'_new(w)/M'_old(w), w = M⁻¹(v). The velocity of
    ``KerasSGD``, which has the learning rate in it, by r; the buffer of torch's SGD, which is multiplied by α·η
    afterwards, by r·α_old/α_new, that is g_old(w)/g_new(w) where neither is 0. Nesterov's look ahead is made of
    the same buffer.
    """
    weights, optimizer = member.weights, member.optimizer
    factors = torch.ones_like(weights.buffer)
    for piece in pieces_of(weights.parts, 0, weights.parts[-1].stop):
        before, after, v = old.on(piece.quantizer), new.on(piece.quantizer), weights.buffer[piece.where]
        w = before.inverse(v)
        factors[piece.where] = after.slope(w) / before.slope(w)
        v.copy_(after.weight_map(w))
    if not isinstance(optimizer, KerasSGD):
        factors *= old.lr_factor / new.lr_factor
    by_id = weights.views(factors)
    for parameter in weights.parameters:
        momentum = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
        if momentum is not None:
            momentum.mul_(by_id[id(parameter)])

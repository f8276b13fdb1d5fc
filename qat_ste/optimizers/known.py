"""Which adjustment is known for which optimizer; any other is tried out."""

from __future__ import annotations

import torch
from torch import optim

from qat_ste.optimizers.adjustment import Adjustment, Equivalence
from qat_ste.optimizers.keras_sgd import KerasSGD
from qat_ste.optimizers.lion import Lion
from qat_ste.optimizers.muon import Muon
from qat_ste.optimizers.probe import MakeOptimizer, probe
from qat_ste.optimizers.sign_sgd import SignSGD

_LINEAR = Adjustment(
    Equivalence.REMAP,
    "a step is a weighted sum of gradients",
    "1/(1 - momentum) steps short against the time in which g changes, a small learning rate, no weight decay",
)
_SIGN = Adjustment(
    Equivalence.EXACT,
    "a step depends on the signs of a weight's own gradients alone",
    "gradients that do not round to 0 (for Rprop: nor the product of two), and no penalty on the weights",
)
_MATRIX = Adjustment(
    Equivalence.NONE,
    "whole kernels are orthogonalized, so that a factor on one weight's gradients changes the others' steps",
)
KNOWN: dict[type[optim.Optimizer], Adjustment] = {
    optim.SGD: _LINEAR,
    KerasSGD: _LINEAR,
    optim.Adam: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the root mean square of a weight's own gradients",
        "1/(1 - β₂) steps short against the time in which g changes, ε small against the gradient, no weight decay",
    ),
    optim.AdamW: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the root mean square of a weight's own gradients; the decay does not see them",
        "1/(1 - β₂) steps short against the time in which g changes, ε small against the gradient",
    ),
    optim.NAdam: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the root mean square of a weight's own gradients",
        "1/(1 - β₂) steps short against the time in which g changes, ε small against the gradient, and weight decay "
        "decoupled if any",
    ),
    optim.Adamax: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the fading maximum of a weight's own gradients",
        "1/(1 - β₂) steps short against the time in which g changes, ε small against the gradient, no weight decay",
    ),
    optim.RMSprop: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the root mean square (or deviation) of a weight's own gradients",
        "1/(1 - α) steps (α: RMSprop's) short against the time in which g changes, ε small against the gradient, "
        "no weight decay",
    ),
    Lion: Adjustment(
        Equivalence.KEEP,
        "a constant factor does not turn the sign of a mean of a weight's own gradients; a factor that changes can",
        "1/(1 - β₂) steps short against the time in which g changes",
    ),
    SignSGD: _SIGN,
    optim.Rprop: _SIGN,
    optim.Adagrad: Adjustment(
        Equivalence.NONE, "a constant factor cancels, but no gradient is ever forgotten, so neither is an earlier g"
    ),
    optim.Adafactor: Adjustment(
        Equivalence.NONE, "second moments are shared along rows and columns, where factors differ from weight to weight"
    ),
    Muon: _MATRIX,
}
if hasattr(optim, "Muon"):  # since torch 2.9
    KNOWN[optim.Muon] = _MATRIX
# With one of these on, an optimizer is no longer what its class says.
TURNING_OPTIONS = ("amsgrad",)


def adjustment_of(make_optimizer: MakeOptimizer, lr: float) -> Adjustment:
    """The adjustment for the class of this optimizer or, where that is not known, for what ``probe`` finds.

    Of a class derived from a known one nothing is known: it may do anything with the gradients.

    Args:
        make_optimizer: called with parameter groups and ``lr=``.
    """
    optimizer = make_optimizer([{"params": [torch.zeros(2, 2, requires_grad=True)]}], lr=lr)
    known = KNOWN.get(type(optimizer))
    if known is None or any(group.get(option) for group in optimizer.param_groups for option in TURNING_OPTIONS):
        return probe(make_optimizer)
    return known

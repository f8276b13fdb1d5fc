"""The adjustments of known optimizers; other optimizers are tested."""

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
    "g changes slowly over the momentum's horizon of 1/(1 - momentum) steps, the learning rate is small, and there is "
    "no weight decay",
)
_SIGN = Adjustment(
    Equivalence.EXACT,
    "a step depends only on the signs of a weight's gradients",
    "gradients do not round to 0 (with Rprop: nor do products of two), and the loss has no penalty on the weights",
)
_MATRIX = Adjustment(
    Equivalence.NONE,
    "whole kernels are orthogonalized, so a factor on one weight's gradients changes the steps of other weights",
)
_RMS = "a step is divided by the root mean square of a weight's gradients"
_SLOW = "g changes slowly over 1/(1 - β₂) steps"
_NO_DECAY = f"{_SLOW}, ε is small compared with the gradient, and there is no weight decay"
KNOWN: dict[type[optim.Optimizer], Adjustment] = {
    optim.SGD: _LINEAR,
    KerasSGD: _LINEAR,
    optim.Adam: Adjustment(Equivalence.KEEP, _RMS, _NO_DECAY),
    optim.AdamW: Adjustment(
        Equivalence.KEEP,
        f"{_RMS}; weight decay does not depend on gradients",
        f"{_SLOW}, and ε is small compared with the gradient",
    ),
    optim.NAdam: Adjustment(
        Equivalence.KEEP, _RMS, f"{_SLOW}, ε is small compared with the gradient, and any weight decay is decoupled"
    ),
    optim.Adamax: Adjustment(
        Equivalence.KEEP, "a step is divided by the decaying maximum of a weight's gradients", _NO_DECAY
    ),
    optim.RMSprop: Adjustment(
        Equivalence.KEEP,
        "a step is divided by the root mean square (or deviation) of a weight's gradients",
        "g changes slowly over 1/(1 - α) steps (α: RMSprop's), ε is small compared with the gradient, and there is no "
        "weight decay",
    ),
    Lion: Adjustment(
        Equivalence.KEEP,
        "a constant factor does not change the sign of a mean of a weight's gradients, but a changing factor can",
        _SLOW,
    ),
    SignSGD: _SIGN,
    optim.Rprop: _SIGN,
    optim.Adagrad: Adjustment(
        Equivalence.NONE, "a constant factor cancels, but gradients are never forgotten, so earlier values of g matter"
    ),
    optim.Adafactor: Adjustment(
        Equivalence.NONE, "rows and columns share second moments, but the factors differ from weight to weight"
    ),
    Muon: _MATRIX,
}
if hasattr(optim, "Muon"):  # since torch 2.9
    KNOWN[optim.Muon] = _MATRIX
# If one of these options is on, the adjustment of the optimizer's class does not apply.
CHANGING_OPTIONS = ("amsgrad",)


def adjustment_of(make_optimizer: MakeOptimizer, lr: float) -> Adjustment:
    """The adjustment of the optimizer's class or, for other classes and options, the result of ``probe``.

    A subclass of a known class is tested too, since it may handle gradients differently.

    Args:
        make_optimizer: called with parameter groups and ``lr=``.
    """
    optimizer = make_optimizer([{"params": [torch.zeros(2, 2, requires_grad=True)]}], lr=lr)
    adjustment = KNOWN.get(type(optimizer))
    if adjustment is None or any(group.get(option) for group in optimizer.param_groups for option in CHANGING_OPTIONS):
        return probe(make_optimizer)
    return adjustment

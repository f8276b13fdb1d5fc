"""How the state of an optimizer changes where its network becomes a counterpart of another one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from torch import optim

from qat_ste.optimizers.keras_sgd import KerasSGD
from qat_ste.optimizers.lion import Lion
from qat_ste.optimizers.muon import Muon
from qat_ste.optimizers.sign_sgd import SignSGD


class StateKind(StrEnum):
    """What a tensor of an optimizer's state holds, for one parameter.

    Velocities are mapped: an STE accumulates G where the reference accumulates g·G. What has a long memory, such as
    squares of gradients, is never taken from the reference: divided by g², it would hide that g changes within its
    memory, and after one step any g would look exact.
    """

    VELOCITY = "velocity"  # a sum of gradients; the learning rate is applied afterwards
    SCALED_VELOCITY = "scaled velocity"  # a sum of gradients times learning rates
    MEAN = "mean"  # a mean of gradients, whose scale cancels
    STEPS = "steps"  # finished steps, which do not depend on g


KEPT: Mapping[str, StateKind] = {}  # optimizers whose members keep all their state
_MEAN = {"exp_avg": StateKind.MEAN}
STATE_MAPS: dict[type[optim.Optimizer], Mapping[str, StateKind]] = {
    optim.SGD: {"momentum_buffer": StateKind.VELOCITY},
    KerasSGD: {"momentum_buffer": StateKind.SCALED_VELOCITY},
    optim.Adam: _MEAN,
    optim.AdamW: _MEAN,
    optim.NAdam: _MEAN,
    optim.Adamax: _MEAN,
    optim.RMSprop: {"momentum_buffer": StateKind.STEPS, "grad_avg": StateKind.MEAN},
    Lion: {"momentum": StateKind.MEAN},
    Muon: {"velocity": StateKind.MEAN},
    SignSGD: KEPT,
    optim.Rprop: KEPT,
    optim.Adagrad: KEPT,
    optim.Adafactor: KEPT,
}
if hasattr(optim, "Muon"):  # since torch 2.9
    STATE_MAPS[optim.Muon] = {"momentum_buffer": StateKind.MEAN}

"""An STE step of one network beside other ways to the same: torch's own fake-quantize operation, and Brevitas."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat_ste.estimators import Ste
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.execution import Execution
from qat_ste.experiment.lockstep import Lockstep
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.optimizers.schedules import constant
from qat_ste.quantizers.scales import he_uniform_bound

from .networks import LR, OPTIMIZER, Setting
from .timing import Contestant, Figure, Stopwatch, interleaved, ratios

BITS = 2
OURS = ("a member of a cohort", "quantize_weights in a loop of one's own")
OTHERS = {"Brevitas": 1.0, "torch.fake_quantize": 1.03}  # with the bar of ours beside theirs
MISSING = "Brevitas is not installed: pip install -e '.[benchmark]'"


class TorchFakeQuantize(nn.Module):
    """Parametrization by torch's operation: levels -2 to 1 times the scale, gradient 1 between them."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
        return torch.fake_quantize_per_tensor_affine(weight, self.scale, 0, low, high)


def scale_of(weight: Tensor) -> float:
    """Distance of neighbouring levels, as ours has it."""
    return 2 * he_uniform_bound(weight) / (2**BITS - 1)


def with_torch(model: nn.Module) -> nn.Module:
    """All convolutions with ``TorchFakeQuantize``."""
    for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        parametrize.register_parametrization(module, "weight", TorchFakeQuantize(scale_of(module.weight)))
    return model


def with_brevitas(model: nn.Module) -> nn.Module:
    """All convolutions as Brevitas' with a signed integer quantizer, rounding STE, one constant scale a tensor.

    Raises:
        ImportError: Brevitas is not installed.
    """
    from brevitas.inject.enum import RestrictValueType, ScalingImplType
    from brevitas.nn import QuantConv2d
    from brevitas.quant import Int8WeightPerTensorFloat

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            quantizer: Any = Int8WeightPerTensorFloat.let(
                bit_width=BITS, narrow_range=False, scaling_impl_type=ScalingImplType.CONST,
                restrict_scaling_type=RestrictValueType.FP, scaling_const=scale_of(module.weight) * 2 ** (BITS - 1),
            )  # fmt: skip
            shape = module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
            theirs = QuantConv2d(*shape, bias=module.bias is not None, weight_quant=quantizer)
            theirs.load_state_dict(module.state_dict(), strict=False)  # their quantizer has a state of its own
            model.set_submodule(name, theirs)
    return model


def loop(model: nn.Module, batch: tuple[Tensor, Tensor], compiled: bool) -> Callable[[], None]:
    """A training step as anyone would write it."""
    optimizer = OPTIMIZER(model.parameters(), lr=LR)
    forward = cast(nn.Module, torch.compile(model)) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def other_ways(setting: Setting, compiled: bool) -> list[Figure]:
    """Ratios of ours to the others' and of all to the plain network's fp32 step; same network, weights and batch."""
    batch, model = setting.batch(), setting.build()
    quantized = quantize_weights(copy.deepcopy(model), BITS, Ste(), [nn.Conv2d])
    execution = Execution(mode="compile" if compiled else "eager")
    cohort = Cohort(copy.deepcopy(quantized), Ste(), OPTIMIZER, LR, [], execution).make_members()
    lockstep = Lockstep(cohort, F.cross_entropy, constant(), seed=0)
    contestants: dict[str, Contestant] = {
        "plain": loop(copy.deepcopy(model), batch, compiled),
        OURS[0]: partial(lockstep.step, 0, *batch),
        OURS[1]: loop(quantized, batch, compiled),
        "torch.fake_quantize": loop(with_torch(copy.deepcopy(model)), batch, compiled),
    }
    with suppress(ImportError):
        contestants["Brevitas"] = loop(with_brevitas(copy.deepcopy(model)), batch, compiled)
    seconds = interleaved(contestants, setting.steps, setting.rounds, Stopwatch())
    where = f"{setting}, {'torch.compile' if compiled else 'eager'}"
    found = []
    for own, (other, bar) in itertools.product(OURS, OTHERS.items()):
        figure = partial(Figure, where, f"{own}, beside {other}", "×", bar=bar)
        found.append(figure(*ratios(seconds[own], seconds[other])) if other in seconds else figure(None, note=MISSING))
    for name in (name for name in contestants if name != "plain"):
        found.append(Figure(where, f"{name}, beside no quantizer", "×", *ratios(seconds[name], seconds["plain"])))
    return found

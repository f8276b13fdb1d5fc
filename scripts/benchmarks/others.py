"""An STE step of one network, compared with torch's fake-quantize operation and with Brevitas."""

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

from qat_ste.base.sections import Execution, Quantization
from qat_ste.estimators import Ste
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Lockstep
from qat_ste.experiment.schedules import constant
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.quantizers.scales import he_uniform_bound

from .networks import LR, OPTIMIZER, Setting
from .timing import Contestant, Figure, Stopwatch, interleaved, ratios

BITS = 2
OURS = ("cohort of one", "quantize_weights in a loop")
OTHERS = {"Brevitas": 1.0, "torch.fake_quantize": 1.03}  # with the target for the ratio of ours to theirs
MISSING = "Brevitas is not installed: pip install -e '.[benchmark]'"


class TorchFakeQuantize(nn.Module):
    """Parametrization by torch's operation: levels are -2 to 1 times the scale, the gradient between them is 1."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
        return torch.fake_quantize_per_tensor_affine(weight, self.scale, 0, low, high)


def scale_of(weight: Tensor) -> float:
    """Returns our step size: the distance between neighbouring levels."""
    return 2 * he_uniform_bound(weight) / (2**BITS - 1)


def with_torch(model: nn.Module) -> nn.Module:
    """Quantizes all convolutions with ``TorchFakeQuantize``."""
    for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        parametrize.register_parametrization(module, "weight", TorchFakeQuantize(scale_of(module.weight)))
    return model


def with_brevitas(model: nn.Module) -> nn.Module:
    """Replaces all convolutions by Brevitas', with a signed integer quantizer and one constant scale per tensor.

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
            theirs.load_state_dict(module.state_dict(), strict=False)  # Brevitas' quantizer has additional state
            model.set_submodule(name, theirs)
    return model


def loop(model: nn.Module, batch: tuple[Tensor, Tensor], compiled: bool) -> Callable[[], None]:
    """Returns a plain training step."""
    optimizer = OPTIMIZER(model.parameters(), lr=LR)
    forward = cast(nn.Module, torch.compile(model)) if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def other_implementations(setting: Setting, compiled: bool) -> list[Figure]:
    """Measures our steps relative to the others', and all relative to an fp32 step, on the same weights and batch."""
    batch, model = setting.batch(), setting.build()
    quantized = quantize_weights(copy.deepcopy(model), Quantization(BITS), Ste())
    execution = Execution(execution="compile" if compiled else "eager")
    cohort = Cohort(copy.deepcopy(quantized), Ste(), OPTIMIZER, LR, [], execution=execution).make_members()
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
    figures = []
    for ours, (other, bar) in itertools.product(OURS, OTHERS.items()):
        figure = partial(Figure, where, f"{ours} / {other}", "×", bar=bar)
        measured = other in seconds
        figures.append(figure(*ratios(seconds[ours], seconds[other])) if measured else figure(None, note=MISSING))
    for name in (name for name in contestants if name != "plain"):
        figures.append(Figure(where, f"{name} / no quantizer", "×", *ratios(seconds[name], seconds["plain"])))
    return figures

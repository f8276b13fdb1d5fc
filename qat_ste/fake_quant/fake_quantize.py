"""Quantized weights for any module: a parametrization whose backward pass is a gradient estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Quantization
from qat_ste.estimators import Estimator
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.quantizer import Quantizer, check_latent
from qat_ste.quantizers.scales import he_uniform_bound

Pattern = str | type[nn.Module]


class _FakeQuantizeFunction(torch.autograd.Function):
    """Forward: Q(w). Backward: the gradient times g(w), never autograd's gradient of ``clamp``."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantizer: Quantizer, estimator: Estimator) -> Tensor:
        ctx.save_for_backward(w)
        ctx.quantizer, ctx.estimator = quantizer, estimator
        return quantizer(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        return ctx.estimator.backward(grad, w, ctx.quantizer), None, None


class FakeQuantize(nn.Module):
    """Parametrization latent weight -> quantized weight.

    The quantizer is part of the ``state_dict``: a checkpoint restores the levels that the model was trained on.
    """

    def __init__(self, quantizer: Quantizer, estimator: Estimator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.estimator = estimator
        self.holds_quantized = False  # whether the parameter holds the quantized values now; see FlatWeights

    def forward(self, w: Tensor) -> Tensor:
        if self.holds_quantized:
            return w
        quantized: Tensor = _FakeQuantizeFunction.apply(w, self.quantizer, self.estimator)
        return quantized

    def right_inverse(self, w: Tensor) -> Tensor:
        """Assigning to the weight sets the latent weight."""
        return w

    def get_extra_state(self) -> dict[str, Any]:
        return self.quantizer.state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.quantizer = make_quantizer(**state)

    def extra_repr(self) -> str:
        return f"{self.quantizer}, {self.estimator}"


def quantizer_of(quantization: Quantization, max: float | Tensor) -> Quantizer:
    """The quantizer with these levels, the largest at ``max``.

    Raises:
        ArgumentError: ``levels`` or ``max`` are not allowed.
    """
    return make_quantizer(max, quantization.saturation, bits=quantization.bits, levels=quantization.levels)


def quantize_weights(
    model: nn.Module,
    quantization: Quantization,
    estimator: Estimator,
    *,
    max: Callable[[Tensor], float | Tensor] = he_uniform_bound,
) -> nn.Module:
    """Quantizes the weights of the chosen modules in place; returns the model.

    Args:
        max: the end of the range, a function of the latent weight, called once.

    Raises:
        ArgumentError: a pattern names no module, nothing is left to quantize, a weight is already parametrized or has
            less than float32, or the estimator does not accept these levels. The model stays unchanged.
    """
    modules = list(model.named_modules())
    for argument in ("include", "exclude"):
        patterns = getattr(quantization, argument)
        for pattern in patterns:
            if isinstance(pattern, str) and not any(_matches(name, module, pattern) for name, module in modules):
                allowed = f"patterns that match modules of the model ({pattern!r} matches none; it has {_kinds(model)})"
                raise ArgumentError(argument, patterns, allowed)
    chosen: list[tuple[nn.Module, str, FakeQuantize]] = []  # all are checked before the first is changed
    for name, module in modules:
        included = any(_matches(name, module, pattern) for pattern in quantization.include)
        if not included or any(_matches(name, module, pattern) for pattern in quantization.exclude):
            continue
        for tensor_name in ("weight", "bias") if quantization.biases else ("weight",):
            w = getattr(module, tensor_name, None)
            if w is None or not w.numel():  # a layer without outputs has empty weights
                continue
            quantizer = _checked_quantizer(module, f"{name}.{tensor_name}", w, quantization, estimator, max)
            chosen.append((module, tensor_name, FakeQuantize(quantizer, estimator)))
    if not chosen:
        allowed = "patterns that leave a weight to quantize, together with exclude"
        raise ArgumentError("include", quantization.include, allowed)
    for module, tensor_name, fake_quantize in chosen:
        parametrize.register_parametrization(module, tensor_name, fake_quantize)
    return model


def _checked_quantizer(
    module: nn.Module,
    name: str,
    w: Tensor,
    quantization: Quantization,
    estimator: Estimator,
    max: Callable[[Tensor], float | Tensor],
) -> Quantizer:
    """The quantizer of the tensor ``name``, if the tensor can be quantized with it."""

    def refuse(reason: str) -> ArgumentError:
        return ArgumentError("include", quantization.include, f"patterns of modules that can be quantized ({reason})")

    if parametrize.is_parametrized(module, name.rpartition(".")[2]):
        raise refuse(f"{name} is parametrized already")
    if all(w is not tensor for tensor in (*module.parameters(False), *module.buffers(False))):
        raise refuse(f"{name} is neither a parameter nor a buffer of its module")
    try:
        check_latent(w.dtype, name)
    except ValueError as error:
        raise refuse(str(error)) from None
    quantizer = quantizer_of(quantization, max(w))
    try:
        estimator.check(quantizer)
    except ValueError as error:
        raise ArgumentError("estimator", estimator, f"one for these levels ({error})") from error
    if (shape := quantizer(w.detach()).shape) != w.shape:
        expected = f"a function whose result broadcasts to the weight ({name}: {tuple(shape)}, not {tuple(w.shape)})"
        raise ArgumentError("max", max, expected)
    return quantizer


def quantized_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, FakeQuantize]]:
    """Qualified name ("conv1.weight"), latent weight and parametrization of each quantized tensor."""
    for module_name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor_name, parametrizations in _parametrizations(module):
            for parametrization in parametrizations:
                if isinstance(parametrization, FakeQuantize):
                    yield f"{module_name}.{tensor_name}".lstrip("."), parametrizations.original, parametrization


def plain_name(name: str) -> str:
    """The name of a parameter before its module was quantized."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def remove_quantizers(model: nn.Module) -> nn.Module:
    """Makes a plain module again, in place: every quantized tensor becomes a parameter that holds its levels."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            # torch deletes the property from the module's class, which copies of the module share.
            shared = type(module)
            module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
            for tensor_name, parametrizations in list(_parametrizations(module)):
                if any(isinstance(parametrization, FakeQuantize) for parametrization in parametrizations):
                    parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=True)
    return model


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return iter(cast(nn.ModuleDict, module.parametrizations).items())


def _matches(name: str, module: nn.Module, pattern: Pattern) -> bool:
    if not isinstance(pattern, str):
        return isinstance(module, pattern)
    # A name may stand for a whole block: of its modules those with matrices or kernels, not the normalization.
    weight = getattr(module, "weight", None)
    named = fnmatchcase(name, pattern) and isinstance(weight, Tensor) and weight.ndim >= 2
    return named or pattern in {kind.__name__ for kind in type(module).__mro__}


def _kinds(model: nn.Module, most: int = 5) -> str:
    """Types of the modules that have a weight, for a message."""
    kinds: Sequence[str] = list(
        dict.fromkeys(type(module).__name__ for module in model.modules() if hasattr(module, "weight"))
    )
    return ", ".join(kinds[:most]) or "no module with a weight"

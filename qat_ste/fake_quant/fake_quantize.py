"""Quantized weights for any module: a parametrization whose backward pass is a gradient estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from qat_ste.estimators import Estimator
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.quantizer import Quantizer, check_latent
from qat_ste.quantizers.scales import he_uniform_bound

Pattern = str | type[nn.Module]
WEIGHTED: tuple[Pattern, ...] = (_ConvNd, nn.Linear)  # what is quantized unless told otherwise


class _FakeQuantizeFunction(torch.autograd.Function):
    """Forward Q(w); backward multiplies the incoming gradient by g(w), never by autograd's own clamp."""

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

    The quantizer is part of the ``state_dict``, so that a checkpoint restores the levels that it was trained on.
    """

    def __init__(self, quantizer: Quantizer, estimator: Estimator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.estimator = estimator
        self.holds_quantized = False  # whether the latent weight is its quantized value just now, see FlatWeights

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


def quantize_weights(
    model: nn.Module,
    bits: int,
    estimator: Estimator,
    include: Sequence[Pattern] = WEIGHTED,
    exclude: Sequence[Pattern] = (),
    *,
    biases: bool = False,
    saturation: str = "range",
    levels: str | Sequence[float] | None = None,
    max: Callable[[Tensor], float | Tensor] = he_uniform_bound,
) -> nn.Module:
    """Quantizes the weights of the chosen modules in place; returns the model.

    Args:
        include: which modules: types, type names, or patterns over qualified names ("layer1.*"); the modules
            they name must have a ``weight``.
        exclude: modules left alone although ``include`` names them.
        biases: whether the biases of these modules are quantized too.
        levels: instead of 2^bits equally spaced ones; see ``GridQuantizer``.
        max: end of the range as a function of the latent weight at this moment.

    Raises:
        ValueError: a pattern names no module, nothing is left to quantize, a weight is quantized already or in less
            than float32, or the estimator is not made for these levels. The model is as it was then.
    """
    modules = list(model.named_modules())
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str) or not all(isinstance(pattern, str | type) for pattern in patterns):
            raise TypeError(f"{argument} must be a list of types, type names or patterns, got {patterns!r}")
        for pattern in patterns:
            if isinstance(pattern, str) and not any(_matches(name, module, pattern) for name, module in modules):
                raise ValueError(f"{argument}: no module of the model matches {pattern!r}")
    chosen: list[tuple[nn.Module, str, FakeQuantize]] = []  # all checked before the first is changed
    for name, module in modules:
        wanted = any(_matches(name, module, pattern) for pattern in include)
        if not wanted or any(_matches(name, module, pattern) for pattern in exclude):
            continue
        for tensor_name in ("weight", "bias") if biases else ("weight",):
            w = getattr(module, tensor_name, None)
            if w is None or not w.numel():  # a layer without outputs has weights, but none to quantize
                continue
            if parametrize.is_parametrized(module, tensor_name):
                raise ValueError(f"{name}.{tensor_name} is parametrized already")
            if all(w is not tensor for tensor in (*module.parameters(False), *module.buffers(False))):
                raise ValueError(f"{name}.{tensor_name} is neither a parameter nor a buffer of its module")
            check_latent(w.dtype, f"{name}.{tensor_name}")
            quantizer = make_quantizer(max(w), saturation, bits=bits, levels=levels)
            try:
                estimator.check(quantizer)
            except ValueError as error:
                raise ValueError(f"estimator {error}") from error
            if (shape := quantizer(w.detach()).shape) != w.shape:
                raise ValueError(f"max makes {name}.{tensor_name}, of shape {tuple(w.shape)}, one of {tuple(shape)}")
            chosen.append((module, tensor_name, FakeQuantize(quantizer, estimator)))
    if not chosen:
        raise ValueError("include and exclude leave no weight to quantize")
    for module, tensor_name, fake_quantize in chosen:
        parametrize.register_parametrization(module, tensor_name, fake_quantize)
    return model


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
    """Of a parameter as the model had it before it was quantized."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def remove_quantizers(model: nn.Module) -> nn.Module:
    """Back to a plain module in place: every quantized tensor becomes a parameter that holds its level values."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            # Copies of a module share the class that torch made for it, from which it takes the property away.
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

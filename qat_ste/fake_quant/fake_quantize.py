"""Quantized weights for any module: a parametrization whose backward pass is a gradient estimator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Quantization
from qat_ste.estimators import Estimator
from qat_ste.quantizers.grids import largest_level, make_quantizer
from qat_ste.quantizers.quantizer import Quantizer, check_latent
from qat_ste.quantizers.rotation import Rotation
from qat_ste.quantizers.scales import Grouping, InitialScale, LearnedScale, MovingScale, scale_of

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
        self.scale: MovingScale | LearnedScale | None = None  # the rule of a scale that moves; see MemberScales
        self.group_size = 0  # weights that share one
        self.rotation: Rotation | None = None  # before rounding, and back after
        self.holds_quantized = False  # whether the parameter holds the quantized values now; see FlatWeights

    def forward(self, w: Tensor) -> Tensor:
        if self.holds_quantized:
            return w
        quantized: Tensor = _FakeQuantizeFunction.apply(self.rounded(w), self.quantizer, self.estimator)
        return self.rounded(quantized)

    def rounded(self, w: Tensor) -> Tensor:
        """The weights that the quantizer rounds: rotated where there is a rotation, which is its own inverse."""
        return w if self.rotation is None else self.rotation(w)

    def right_inverse(self, w: Tensor) -> Tensor:
        """Assigning to the weight sets the latent weight."""
        return w

    def get_extra_state(self) -> Tensor:
        return packed_state(self.quantizer.state | ({"rotation": self.rotation.size} if self.rotation else {}))

    def set_extra_state(self, state: Tensor | dict[str, Any]) -> None:
        arguments = unpacked_state(state) if isinstance(state, Tensor) else dict(state)
        size = arguments.pop("rotation", None)
        self.rotation = None if size is None else Rotation(size)
        self.quantizer = make_quantizer(**arguments)

    def extra_repr(self) -> str:
        return f"{self.quantizer}, {self.estimator}"


def packed_state(state: dict[str, Any]) -> Tensor:
    """The state of a quantizer as JSON in bytes: many tools expect a ``state_dict`` to hold tensors alone."""
    text = json.dumps(state, default=lambda tensor: {"dtype": str(tensor.dtype), "values": tensor.tolist()})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def unpacked_state(packed: Tensor) -> dict[str, Any]:
    """The state of a quantizer; an average of equal states, as float, is rounded."""
    state: dict[str, Any] = json.loads(bytes(packed.round().to(torch.uint8).tolist()))
    if isinstance(max_ := state["max"], dict):
        state["max"] = torch.tensor(max_["values"], dtype=getattr(torch, max_["dtype"].removeprefix("torch.")))
    return state


def quantizer_of(quantization: Quantization, max: float | Tensor) -> Quantizer:
    """The quantizer with these levels, the largest at ``max``.

    Raises:
        ArgumentError: ``levels``, ``ties`` or ``max`` are not allowed.
    """
    return make_quantizer(
        max, quantization.saturation, bits=quantization.bits, levels=quantization.levels, ties=quantization.ties
    )


def initial_scale(quantization: Quantization, w: Tensor) -> float | Tensor:
    """The scale of a tensor before training: a number, or a tensor that broadcasts to the weights.

    Raises:
        ArgumentError: ``scale`` or ``granularity`` do not suit the weights.
    """
    scale = _scale(quantization)
    if isinstance(scale, float):
        return scale
    return scale.of(w, Grouping.of(quantization.granularity, w), quantizer_of(quantization, 1.0))


def _scale(quantization: Quantization) -> float | InitialScale | MovingScale | LearnedScale:
    levels = quantization.levels
    return scale_of(quantization.scale, 1.0 if levels is None else largest_level(levels))


def quantize_weights(
    model: nn.Module,
    quantization: Quantization,
    estimator: Estimator,
    *,
    max: Callable[[Tensor], float | Tensor] | None = None,
) -> nn.Module:
    """Quantizes the weights of the chosen modules in place; returns the model.

    The weight of a module is its parameter ``weight``; without one, its parameters with "weight" in their names, as
    those of attention; without these, its parameters with at least two dimensions.

    Args:
        max: the end of the range, a function of the latent weight, called once; replaces ``scale``.

    Raises:
        ArgumentError: a pattern names no module, nothing is left to quantize, a weight is already parametrized or has
            less than float32, a module has no weight or does not read it through its attribute, or the estimator does
            not accept these levels. The model stays unchanged.
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
        for tensor_name in _tensor_names(name, module, quantization):
            w = getattr(module, tensor_name)
            if not w.numel():  # a layer without outputs has empty weights
                continue
            fake_quantize = _fake_quantize(module, f"{name}.{tensor_name}", w, quantization, estimator, max)
            chosen.append((module, tensor_name, fake_quantize))
    if not chosen:
        allowed = "patterns that leave a weight to quantize, together with exclude"
        raise ArgumentError("include", quantization.include, allowed)
    for done, (module, tensor_name, fake_quantize) in enumerate(chosen):
        try:
            parametrize.register_parametrization(module, tensor_name, fake_quantize)
        except Exception:
            for earlier, earlier_name, _ in chosen[:done]:
                _remove_parametrizations(earlier, earlier_name, leave_parametrized=False)
            raise
    return model


def _tensor_names(name: str, module: nn.Module, quantization: Quantization) -> list[str]:
    """The tensors of a chosen module that are quantized."""
    if isinstance(module, nn.RNNBase):
        problem = f"{type(module).__name__} does not read its weights from its attributes; use cells, as nn.LSTMCell"
        raise _refused(quantization, f"{name}: {problem}")
    parameters = dict(module.named_parameters(recurse=False))
    matrices = [key for key, values in parameters.items() if values.ndim >= 2 and "bias" not in key]
    weights = list(_weights(module)) or matrices
    if parameters and not weights:
        problem = f"its parameters {', '.join(parameters)} are neither called weight nor matrices or kernels"
        raise _refused(quantization, f"{name}: {problem}")
    return weights + [key for key in parameters if "bias" in key and quantization.biases]


def _refused(quantization: Quantization, reason: str) -> ArgumentError:
    return ArgumentError("include", quantization.include, f"patterns of modules that can be quantized ({reason})")


def _fake_quantize(
    module: nn.Module,
    name: str,
    w: Tensor,
    quantization: Quantization,
    estimator: Estimator,
    max: Callable[[Tensor], float | Tensor] | None,
) -> FakeQuantize:
    """The parametrization of the tensor ``name``, if the tensor can be quantized."""
    if parametrize.is_parametrized(module, name.rpartition(".")[2]):
        raise _refused(quantization, f"{name} is parametrized already")
    if all(w is not tensor for tensor in (*module.parameters(False), *module.buffers(False))):
        raise _refused(quantization, f"{name} is neither a parameter nor a buffer of its module")
    try:
        check_latent(w.dtype, name)
    except ValueError as error:
        raise _refused(quantization, str(error)) from None
    _check_orientation(module, name, quantization, max is None)
    try:
        with torch.no_grad():
            rotation = Rotation.of(quantization.rotation, w)
            w = w.detach() if rotation is None else rotation(w)
            max_ = max(w) if max else initial_scale(quantization, w)
        quantizer = quantizer_of(quantization, max_.detach().clone() if isinstance(max_, Tensor) else max_)
    except ArgumentError as error:
        where = f" ({name})" if error.name in ("max", "scale", "granularity", "rotation") else ""
        raise ArgumentError(error.name, error.value, f"{error.allowed}{where}") from None
    try:
        estimator.check(quantizer)
    except ValueError as error:
        raise ArgumentError("estimator", estimator, f"one for these levels ({error})") from error
    if (shape := quantizer(w).shape) != w.shape:
        expected = f"a function whose result broadcasts to the weight ({name}: {tuple(shape)}, not {tuple(w.shape)})"
        raise ArgumentError("max", max, expected)
    fake_quantize = FakeQuantize(quantizer, estimator)
    fake_quantize.rotation = rotation
    if max is None and isinstance(scale := _scale(quantization), MovingScale | LearnedScale):
        fake_quantize.scale, fake_quantize.group_size = scale, Grouping.of(quantization.granularity, w).size
    return fake_quantize


def _check_orientation(module: nn.Module, name: str, quantization: Quantization, scaled: bool) -> None:
    """Refuses what takes the first dimension for that of the outputs, where it is that of the inputs.

    Transposed convolutions and the ``Conv1D`` of transformers store their weights so.
    """
    kind = type(module).__name__
    if not (kind == "Conv1D" or isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)):
        return
    remedy = "see models.with_linear_layers" if kind == "Conv1D" else "exclude it"
    problem = f"({name}: the first dimension of {kind}.weight counts inputs; {remedy})"
    if quantization.granularity != "tensor":
        raise ArgumentError("granularity", quantization.granularity, f"tensor {problem}")
    if quantization.rotation is not None:
        raise ArgumentError("rotation", quantization.rotation, f"None {problem}")
    if kind == "Conv1D" and scaled and quantization.scale == "he":
        raise ArgumentError("scale", "he", f"one that does not depend on the number of inputs, as absmax {problem}")


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
            for tensor_name, parametrizations in list(_parametrizations(module)):
                if any(isinstance(parametrization, FakeQuantize) for parametrization in parametrizations):
                    _remove_parametrizations(module, tensor_name, leave_parametrized=True)
    return model


def packed_model(model: nn.Module) -> tuple[nn.Module, list[tuple[str, str, FakeQuantize]]]:
    """The model, changed in place, without its quantizers, and each quantizer with the names of module and tensor.

    Parametrized modules cannot be pickled; ``unpacked_model`` makes the quantized model again.
    """
    fake_quantizes = [
        (module_name, tensor_name, parametrization)
        for module_name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor_name, parametrizations in _parametrizations(module)
        for parametrization in parametrizations
        if isinstance(parametrization, FakeQuantize)
    ]
    for module_name, tensor_name, _ in fake_quantizes:
        _remove_parametrizations(model.get_submodule(module_name), tensor_name, leave_parametrized=False)
    return model, fake_quantizes


def unpacked_model(model: nn.Module, fake_quantizes: list[tuple[str, str, FakeQuantize]]) -> nn.Module:
    """The quantized model, from what ``packed_model`` returned."""
    for module_name, tensor_name, fake_quantize in fake_quantizes:
        parametrize.register_parametrization(model.get_submodule(module_name), tensor_name, fake_quantize)
    return model


def _remove_parametrizations(module: nn.Module, tensor_name: str, leave_parametrized: bool) -> None:
    # torch deletes the property from the module's class, which copies of the module share.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=leave_parametrized)


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, Any]]:
    return iter(cast(nn.ModuleDict, module.parametrizations).items())


def _matches(name: str, module: nn.Module, pattern: Pattern) -> bool:
    if not isinstance(pattern, str):
        return isinstance(module, pattern)
    # A name may stand for a whole block: of its modules those with matrices or kernels, not the normalization.
    named = fnmatchcase(name, pattern) and any(w.ndim >= 2 for w in _weights(module).values())
    return named or pattern in {kind.__name__ for kind in type(module).__mro__}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's ``weight``; without it, its parameters with "weight" in their names, as those of attention."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):  # perhaps computed by a parametrization
        return {"weight": weight}
    return {name: values for name, values in module.named_parameters(recurse=False) if "weight" in name}


def _kinds(model: nn.Module, most: int = 5) -> str:
    """Types of the modules that have a weight, for a message."""
    kinds: Sequence[str] = list(
        dict.fromkeys(type(module).__name__ for module in model.modules() if hasattr(module, "weight"))
    )
    return ", ".join(kinds[:most]) or "no module with a weight"

"""The quantized tensors of a model as one flat buffer: their latent values, and in training their quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qat_ste.estimators import Estimator
from qat_ste.fake_quant.fake_quantize import plain_name, quantized_tensors
from qat_ste.fake_quant.flat_layout import Block, Part


def parts_of(model: nn.Module) -> list[Part]:
    """Where each quantized tensor of the model lies in a flat buffer of them all; tied weights are there once.

    Raises:
        ValueError: the model's weights cannot be trained, compared, or held in one buffer; names the tensor.
    """
    _check(model)
    parts: list[Part] = []
    seen, start = set(), 0
    for name, parameter, fake_quantize in quantized_tensors(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        quantizer = fake_quantize.quantizer
        if isinstance(quantizer.max, Tensor):
            max_ = quantizer.max.to(parameter.device).expand_as(parameter).reshape(-1)
            quantizer = quantizer.with_max(max_)
        parts.append(Part(name, start, start + parameter.numel(), quantizer))
        start += parameter.numel()
    return parts


def _check(model: nn.Module) -> None:
    quantized = {id(parameter): (name, parameter) for name, parameter, _ in quantized_tensors(model)}
    (first, like), *others = quantized.values()
    for name, parameter in others:
        if (parameter.dtype, parameter.device) != (like.dtype, like.device):
            kinds = f"{first} is {like.dtype} on {like.device}, {name} {parameter.dtype} on {parameter.device}"
            raise ValueError(f"include: quantized weights must be of one type and on one device; {kinds}")
    if not any(parameter.requires_grad for _, parameter in quantized.values()):
        raise ValueError(f"include: {first} and whatever else is quantized is frozen, so that no estimator is called")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.isfinite().all():
            raise ValueError(f"build_model: {plain_name(name)} holds NaN or infinity before any step")
        if id(parameter) in quantized and plain_name(name) == name:
            tied = quantized[id(parameter)][0]
            raise ValueError(f"include: {name} is tied to {tied}, which is quantized: quantize both or none")


class FlatWeights:
    """All quantized latent weights of a model in one buffer, of which the model's parameters become views.

    Optimizers work in place, so the buffer is always current and metrics read it without a copy.

    Args:
        estimator: of all quantized tensors; see ``use``.
        blocks: of all parts; the same for all members, since their quantizers may be as large as the weights.
        buffer: where the latent weights go; what they leave of it stays as it is.
        quantized: as long, for the quantized weights; who writes them before a step calls ``remember``.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        parts: Sequence[Part],
        blocks: Sequence[Block],
        buffer: Tensor,
        quantized: Tensor,
    ) -> None:
        found = list(quantized_tensors(model))
        by_name = {name: parameter for name, parameter, _ in found}
        self.parameters = [by_name[part.name] for part in parts]
        self.parts, self.buffer, self._quantized = parts, buffer, quantized
        self._fake_quantizes = [fake_quantize for _, _, fake_quantize in found]
        self._latent_of, self._quantized_of = (
            list(self.views(values).values()) for values in (self.buffer, self._quantized)
        )
        torch._foreach_copy_(self._latent_of, [parameter.detach() for parameter in self.parameters])
        self._hold(self._latent_of, False)
        self.use(estimator)
        self._blocks = [(block.quantizer, buffer[block.where], quantized[block.where]) for block in blocks]
        self._known: list[int] = []

    def views(self, values: Tensor) -> dict[int, Tensor]:
        """Of a flat tensor like the buffer, what belongs to each parameter, by the parameter's id."""
        both = zip(self.parameters, self.parts, strict=True)
        return {id(parameter): values[part.start : part.stop].view(parameter.shape) for parameter, part in both}

    def use(self, estimator: Estimator) -> None:
        """Sets the estimator of all quantized tensors."""
        self.estimator = estimator
        for fake_quantize in self._fake_quantizes:
            fake_quantize.estimator = estimator

    def remember(self) -> None:
        """Marks the quantized buffer as current, until a weight changes."""
        self._known = self._versions()

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Meanwhile the parameters hold their quantized values, so that gradients are those of the loss at these.

        Forward and backward passes are then those of the plain network, and what a quantizer and its estimator add
        is a few operations on flat buffers.
        """
        if self._known != self._versions():
            self._quantize()
        self._hold(self._quantized_of, True)
        try:
            yield
        finally:
            self._hold(self._latent_of, False)

    @torch.no_grad()
    def estimate(self) -> None:
        """Makes gradients of latent weights, by the estimator, of those at quantized weights, in place."""
        estimator = self.estimator
        both = zip(self.parameters, self._quantized_of, strict=True)
        some = [(parameter.grad, values) for parameter, values in both if parameter.grad is not None]
        if not some:
            raise ValueError("include: the loss depends on none of the quantized weights, which get no gradient")
        # The quantized values have had their use: their buffer is room for g, or for gradients side by side.
        self._known = []
        gradients, values = [gradient for gradient, _ in some], [values for _, values in some]
        if type(estimator).backward is Estimator.backward:
            for quantizer, latent, g in self._blocks:
                g.copy_(estimator.derivative(latent, quantizer))
            torch._foreach_mul_(gradients, values)
        else:
            torch._foreach_copy_(values, gradients)
            for quantizer, latent, gradient in self._blocks:
                gradient.copy_(estimator.backward(gradient, latent, quantizer))
            torch._foreach_copy_(gradients, values)

    @torch.no_grad()
    def _quantize(self) -> None:
        for quantizer, latent, quantized in self._blocks:
            quantized.copy_(quantizer(latent))

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.parameters]

    def _hold(self, values: Sequence[Tensor], quantized: bool) -> None:
        """Makes the parameters views of ``values``. Nothing else changes a parameter's storage.

        It has to change: the passes take the quantized values from the parameters themselves, so that they are those
        of the plain network, and the optimizer and DDP hold on to the parameters as objects.
        """
        for parameter, own in zip(self.parameters, values, strict=True):
            parameter.data = own
        for fake_quantize in self._fake_quantizes:
            fake_quantize.holds_quantized = quantized

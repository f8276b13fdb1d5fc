"""Flat buffers of a model's quantized tensors: one with latent values, one with quantized values for training."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Estimator
from qat_ste.fake_quant.fake_quantize import FakeQuantize, plain_name, quantized_tensors
from qat_ste.fake_quant.flat_layout import Chunk, ChunkGroup, FlatTensor, group_chunks, split_into_chunks
from qat_ste.fake_quant.member_scales import MemberScales, Seen
from qat_ste.quantizers.rotation import Rotation
from qat_ste.quantizers.scales import Grouping

log = logging.getLogger(__name__)
MOST_SATURATED = 0.01  # of the weights before training, without a warning
UNCHANGED = (
    "a function that returns a model whose forward pass leaves quantized weights as they are (change them in the "
    "optimizer's step, or leave the layer out with exclude)"
)


def flat_tensors(model: nn.Module) -> list[FlatTensor]:
    """Lays out the quantized tensors of a model in a flat buffer; tied weights take space once.

    Raises:
        ValueError: the model's weights cannot be trained, compared or stored in one buffer; names the tensor.
    """
    _check_weights(model)
    tensors: list[FlatTensor] = []
    seen, start = set(), 0
    for name, parameter, fake_quantize in quantized_tensors(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        quantizer = fake_quantize.quantizer
        if isinstance(quantizer.max, Tensor):
            max_ = quantizer.max.to(parameter.device).expand_as(parameter).reshape(-1)
            quantizer = quantizer.with_max(max_)
        scale, size = fake_quantize.scale, fake_quantize.group_size
        stop = start + parameter.numel()
        tensors.append(FlatTensor(name, start, stop, quantizer, scale, size, fake_quantize.rotation))
        start += parameter.numel()
    return tensors


def _check_weights(model: nn.Module) -> None:
    quantized = {id(parameter): (name, parameter) for name, parameter, _ in quantized_tensors(model)}
    (first, like), *others = quantized.values()
    for name, parameter in others:
        if (parameter.dtype, parameter.device) != (like.dtype, like.device):
            difference = f"{first} is {like.dtype} on {like.device}, {name} {parameter.dtype} on {parameter.device}"
            raise ValueError(f"include: quantized weights must be of one type and on one device; {difference}")
    if not any(parameter.requires_grad for _, parameter in quantized.values()):
        raise ValueError(f"include: {first} and all other quantized weights are frozen, so no estimator is called")
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.isfinite().all():
            raise ValueError(f"build_model: {plain_name(name)} holds NaN or infinity before any step")
        if id(parameter) in quantized and plain_name(name) == name:
            tied = quantized[id(parameter)][0]
            raise ValueError(f"include: {name} is tied to {tied}, which is quantized: quantize both or none")
        if id(parameter) in quantized and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
            allowed = f"a function that returns a model without hooks on quantized weights ({plain_name(name)} has one)"
            raise ArgumentError("build_model", "a hook", f"{allowed}: they would be called before the estimator")


def warn_of_saturation(model: nn.Module) -> None:
    """Warns if many quantized weights lie outside the range, where they keep the outermost level."""
    counts = []
    for name, parameter, fake_quantize in quantized_tensors(model):
        if fake_quantize.quantizer.saturation != "none":  # there they get a gradient all the same
            outside = fake_quantize.quantizer.saturated(fake_quantize.rounded(parameter.detach()))
            counts.append((int(outside.count_nonzero()), parameter.numel(), name))
    if not counts:
        return
    share = sum(outside for outside, _, _ in counts) / sum(size for _, size, _ in counts)
    if share > MOST_SATURATED:
        most, name = max((outside / size, name) for outside, size, name in counts)
        log.warning(
            "%.0f %% of the quantized weights lie outside the range, most in %s (%.0f %%); scale=initial_absmax, with "
            "granularity=channel if need be, covers them",
            *(100 * share, name, 100 * most),
        )


class FlatWeights:
    """Moves the quantized latent weights of a model into one buffer; the model's parameters become views of it.

    Since optimizers work in place, the buffer is always current, and metrics read it without a copy. Where weights are
    rotated before they are quantized, the buffer holds rotated copies: call ``rotate`` after the weights changed, and
    ``rotate_back`` after the buffer did.

    Args:
        estimator: of all quantized tensors; see ``use``.
        chunk_groups: of all tensors; shared by all members, since their quantizers can be as large as the weights.
            Where scales move, each member has its own.
        buffer: for the latent weights; can be longer than needed.
        quantized: for the quantized weights, as long as ``buffer``; call ``remember`` after writing to it.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        tensors: Sequence[FlatTensor],
        chunk_groups: Sequence[ChunkGroup],
        buffer: Tensor,
        quantized: Tensor,
    ) -> None:
        by_name = {}
        by_parameter: dict[int, list[FakeQuantize]] = defaultdict(list)  # several where weights are tied
        for name, parameter, fake_quantize in quantized_tensors(model):
            by_name[name] = parameter
            by_parameter[id(parameter)].append(fake_quantize)
        self.parameters = [by_name[tensor.name] for tensor in tensors]
        self._fake_quantizes = [by_parameter[id(parameter)] for parameter in self.parameters]
        self.tensors, self.buffer, self._quantized = tensors, buffer, quantized
        self._rotated = [tensor for tensor in tensors if tensor.rotation is not None]
        self._latent = torch.zeros_like(buffer) if self._rotated else buffer
        flat = (self._latent, quantized)
        self._latent_views, self._quantized_views = (list(self.views(values).values()) for values in flat)
        torch._foreach_copy_(self._latent_views, [parameter.detach() for parameter in self.parameters])
        self._set_parameters(self._latent_views, False)
        self.rotate()
        self.use(estimator)
        self.scales = MemberScales(tensors, buffer) if any(tensor.scale for tensor in tensors) else None
        if self.scales is not None:
            chunk_groups = group_chunks(self.all_chunks, buffer)
        self.chunk_groups = chunk_groups
        self._buffers = [(buffer[group.where], quantized[group.where]) for group in chunk_groups]
        self._quantized_versions: list[int] = []  # of the parameters when they were quantized

    def views(self, values: Tensor) -> dict[int, Tensor]:
        """The view of each parameter in a flat tensor laid out like the buffer, by the parameter's id."""
        pairs = zip(self.parameters, self.tensors, strict=True)
        return {id(parameter): values[tensor.start : tensor.stop].view(parameter.shape) for parameter, tensor in pairs}

    @property
    def all_chunks(self) -> list[Chunk]:
        """Chunks of all weights, with this member's scales."""
        return split_into_chunks(self.tensors, 0, self.tensors[-1].stop) if self.scales is None else self.scales.chunks

    @torch.no_grad()
    def rotate(self) -> None:
        """Computes the rotated weights, after the model's weights have changed."""
        if self._rotated:
            self.buffer.copy_(self._latent)
            self._rotate(self.buffer)

    @torch.no_grad()
    def rotate_back(self) -> None:
        """Computes the model's weights, after the rotated ones have changed; these change again, by their rounding."""
        if self._rotated:
            self._latent.copy_(self.buffer)
            self._rotate(self._latent)
            self.rotate()
            self.forget()

    def _rotate(self, values: Tensor) -> None:
        for tensor in self._rotated:
            part = values[tensor.start : tensor.stop]
            part.copy_(cast(Rotation, tensor.rotation)(part))

    def rescale(self, scales: dict[int, Tensor] | None = None) -> None:
        """Sets the scales that move, by default to those of the weights."""
        if self.scales is not None:
            if scales is None:
                self.scales.follow()
            else:
                self.scales.set(scales)
            self.forget()

    def update_modules(self) -> None:
        """Gives the model's modules the scales as they are now, as evaluation, export and checkpoints need them."""
        if self.scales is None:
            return
        for number, scales in self.scales.values.items():
            grouping = Grouping(self.parameters[number].shape, self.tensors[number].group_size)
            quantizer = self.tensors[number].quantizer.rescaled(grouping.spread(scales.detach().clone()))
            for fake_quantize in self._fake_quantizes[number]:
                fake_quantize.quantizer = quantizer

    def read_modules(self) -> None:
        """Takes the scales from the model's modules, as a checkpoint left them there."""
        self.rotate()
        if self.scales is None:
            return
        scales = {}
        for number in self.scales.values:
            max_ = torch.as_tensor(self._fake_quantizes[number][0].quantizer.max)
            flat = max_.to(self.buffer).expand_as(self.parameters[number]).reshape(-1)
            scales[number] = flat[:: self.tensors[number].group_size]
        self.rescale(scales)

    def use(self, estimator: Estimator) -> None:
        """Sets the estimator of all quantized tensors."""
        self.estimator = estimator
        for fake_quantize in chain.from_iterable(self._fake_quantizes):
            fake_quantize.estimator = estimator

    def remember(self) -> None:
        """Marks the quantized buffer, just filled with levels, as current until a weight changes."""
        with torch.no_grad():
            self._rotate(self._quantized)
        self._quantized_versions = self._versions()

    def forget(self) -> None:
        """Marks the quantized buffer as outdated, after a change that torch does not count, as one of ``.data``."""
        self._quantized_versions = []

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Context in which the parameters hold their quantized values, so gradients are taken at these.

        Forward and backward passes are those of the plain network; quantizer and estimator add only a few operations
        on flat buffers.

        Raises:
            ArgumentError: the optimizer replaced a weight's tensor before, or the model does so inside.
        """
        if replaced := self._replaced(self._latent_views):
            raise ArgumentError("optimizer", replaced, "one that changes weights in place")
        if self._quantized_versions != self._versions():
            self._quantize()
        self._set_parameters(self._quantized_views, True)
        try:
            yield
            if replaced := self._replaced(self._quantized_views):
                raise ArgumentError("build_model", f"a new tensor for {replaced}", UNCHANGED)
        finally:
            self._set_parameters(self._latent_views, False)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """``quantized``, and compares the weights afterwards with those before.

        Raises:
            ArgumentError: the code inside changes a quantized weight.
        """
        with self.quantized():
            before = self._quantized.clone()
            yield
            for tensor in self.tensors:
                old, new = (flat[tensor.start : tensor.stop] for flat in (before, self._quantized))
                if not ((old == new) | old.isnan()).all():
                    raise ArgumentError("build_model", f"a change of {tensor.name}", UNCHANGED)

    @torch.no_grad()
    def estimate(self, seen: Seen | None = None) -> None:
        """Replaces the gradients at quantized weights by the estimator's gradients of latent weights, in place.

        Args:
            seen: the weights and g that learned scales get their gradients from; by default the member's own.

        Raises:
            ValueError: no quantized weight has a gradient.
        """
        estimator = self.estimator
        pairs = zip(self.parameters, self._quantized_views, strict=True)
        with_gradient = [(parameter.grad, values) for parameter, values in pairs if parameter.grad is not None]
        if not with_gradient:
            raise ValueError("include: the loss depends on none of the quantized weights, so they get no gradient")
        if any(gradient.layout is not torch.strided for gradient, _ in with_gradient):
            raise ArgumentError("build_model", "sparse gradients", "a function whose quantized weights get dense ones")
        of_scales: dict[int, Tensor] = {}
        if self.scales is not None and self.scales.has_gradient:
            own = seen or (lambda w, quantizer: (w, estimator.derivative(w, quantizer)))
            of_scales = self.scales.gradients(self._gradients(), self._quantized, own)
        # The quantized values are no longer needed: their buffer now takes g, or all gradients side by side.
        self._quantized_versions = []
        gradients, values = [gradient for gradient, _ in with_gradient], [values for _, values in with_gradient]
        if type(estimator).backward is Estimator.backward and not self._rotated:
            for group, (latent, g) in zip(self.chunk_groups, self._buffers, strict=True):
                g.copy_(estimator.derivative(latent, group.quantizer))
            torch._foreach_mul_(gradients, values)
        else:
            torch._foreach_copy_(values, gradients)
            self._rotate(self._quantized)
            for group, (latent, gradient) in zip(self.chunk_groups, self._buffers, strict=True):
                gradient.copy_(estimator.backward(gradient, latent, group.quantizer))
            self._rotate(self._quantized)
            torch._foreach_copy_(gradients, values)
        if self.scales is not None and of_scales:
            of_latent = self._gradients()
            self.scales.pass_on(of_scales, of_latent, seen)
            for number, gradient in of_latent.items():
                parameter = self.parameters[number]
                parameter.grad = gradient.view(parameter.shape)

    def _gradients(self) -> dict[int, Tensor]:
        """The gradients of the quantized tensors that have one, flat, by number of the tensor."""
        grads = enumerate(parameter.grad for parameter in self.parameters)
        return {number: gradient.reshape(-1) for number, gradient in grads if gradient is not None}

    @torch.no_grad()
    def _quantize(self) -> None:
        self.rotate()
        for group, (latent, quantized) in zip(self.chunk_groups, self._buffers, strict=True):
            quantized.copy_(group.quantizer(latent))
        self._rotate(self._quantized)

    def _replaced(self, views: Sequence[Tensor]) -> str:
        """The first tensor whose parameter is no longer one of these views; empty if there is none."""
        pairs = zip(self.parameters, views, self.tensors, strict=True)
        return next((tensor.name for p, view, tensor in pairs if p.data_ptr() != view.data_ptr()), "")

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self.parameters]

    def _set_parameters(self, values: Sequence[Tensor], quantized: bool) -> None:
        """Makes the parameters views of ``values``; only this method changes their storage.

        The plain network's passes read the parameters, and the optimizer and DDP keep references to them, so the
        storage changes, not the objects.
        """
        for parameter, view in zip(self.parameters, values, strict=True):
            parameter.data = view
        for fake_quantize in chain.from_iterable(self._fake_quantizes):
            fake_quantize.holds_quantized = quantized

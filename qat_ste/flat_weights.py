"""The quantized tensors of a model as one flat buffer: their latent values, and in training their quantized ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qat_ste.divergence import Part, Piece, blocks_of, pieces_of
from qat_ste.fake_quantize import quantized_tensors


def parts_of(model: nn.Module) -> list[Part]:
    """Where each quantized tensor of the model lies in a flat buffer of them all; tied weights are there once."""
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


class FlatWeights:
    """All quantized latent weights of a model in one buffer, of which the model's parameters become views.

    Optimizers work in place, so the buffer is always current and metrics read it without a copy.

    Args:
        size: length of the buffer; what the weights leave of it is zero.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Part], size: int) -> None:
        found = list(quantized_tensors(model))
        by_name = {name: parameter for name, parameter, _ in found}
        self.parameters = [by_name[part.name] for part in parts]
        self.parts = parts
        self._fake_quantizes = [fake_quantize for _, _, fake_quantize in found]
        first, used = self.parameters[0], parts[-1].stop
        self.buffer = torch.zeros(size, dtype=first.dtype, device=first.device)
        self._quantized, self._gradient = torch.zeros_like(self.buffer[:used]), torch.zeros_like(self.buffer[:used])
        self._latent_of, self._quantized_of, self._gradient_of = (
            list(self.views(values).values()) for values in (self.buffer, self._quantized, self._gradient)
        )
        for parameter, latent in zip(self.parameters, self._latent_of, strict=True):
            parameter.data = latent.copy_(parameter.detach())
        self._blocks = blocks_of(pieces_of(parts, 0, used), self.buffer)
        self._index: Tensor | None = None
        self._versions: list[int] = []

    def views(self, values: Tensor) -> dict[int, Tensor]:
        """Of a flat tensor like the buffer, what belongs to each parameter, by the parameter's id."""
        both = zip(self.parameters, self.parts, strict=True)
        return {id(parameter): values[part.start : part.stop].view(parameter.shape) for parameter, part in both}

    def remember(self, index: Tensor) -> None:
        """Spares the next step the search for the levels of all weights, whose numbers these are as they lie now."""
        self._index, self._versions = index, [parameter._version for parameter in self.parameters]

    @contextmanager
    def quantized(self) -> Iterator[None]:
        """Meanwhile the parameters hold their quantized values, so that gradients are those of the loss at these.

        Forward and backward passes are then those of the plain network, and what a quantizer and its estimator add
        is a few operations on flat buffers.
        """
        self._quantize()
        self._hold(self._quantized_of, True)
        try:
            yield
        finally:
            self._hold(self._latent_of, False)

    @torch.no_grad()
    def estimate(self) -> None:
        """Makes gradients of latent weights, by the estimator, of those at quantized weights; in ``parameter.grad``."""
        estimator = self._fake_quantizes[0].estimator
        for block in self._blocks:
            gradients = [self._gradient_at(piece) for piece in block.pieces]
            gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
            self._gradient[block.where] = estimator.backward(gradient, self.buffer[block.where], block.quantizer)
        for parameter, gradient in zip(self.parameters, self._gradient_of, strict=True):
            if parameter.grad is not None:
                parameter.grad = gradient

    def _gradient_at(self, piece: Piece) -> Tensor:
        """Of the loss at the quantized weights of the piece; zeros where the loss does not depend on them."""
        gradient, start = self.parameters[piece.part].grad, self.parts[piece.part].start
        if gradient is None:
            return torch.zeros_like(self.buffer[piece.where])
        return gradient.reshape(-1)[piece.where.start - start : piece.where.stop - start]

    @torch.no_grad()
    def _quantize(self) -> None:
        known = self._index if self._versions == [parameter._version for parameter in self.parameters] else None
        for block in self._blocks:
            where, quantizer = block.where, block.quantizer
            self._quantized[where] = quantizer(self.buffer[where]) if known is None else quantizer.level(known[where])

    def _hold(self, values: Sequence[Tensor], quantized: bool) -> None:
        for parameter, own in zip(self.parameters, values, strict=True):
            parameter.data = own
        for fake_quantize in self._fake_quantizes:
            fake_quantize.holds_quantized = quantized

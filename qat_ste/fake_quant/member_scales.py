"""The scales of one member's tensors, where they move with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qat_ste.fake_quant.flat_layout import Chunk, FlatTensor, split_into_chunks
from qat_ste.quantizers.grouped import GroupedQuantizer
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.quantizers.scales import MovingScale

Seen = Callable[[Tensor, Quantizer], tuple[Tensor, Tensor]]


class MemberScales:
    """One scale per group of weights of each tensor that has a moving scale.

    Args:
        tensors: the layout of the member's weights; a tensor's initial quantizer holds its initial scales.
        buffer: the member's flat latent weights, which it always reads as they are.
    """

    def __init__(self, tensors: Sequence[FlatTensor], buffer: Tensor) -> None:
        self.tensors, self.buffer = tensors, buffer
        self.values: dict[int, Tensor] = {}
        for number, tensor in enumerate(tensors):
            if tensor.scale is not None:
                initial = tensor.initial_scales.to(buffer, copy=True)
                self.values[number] = nn.Parameter(initial) if tensor.scale.learned else initial
        self._now: dict[tuple[int, int, int], Quantizer] = {}
        self.chunks = split_into_chunks(tensors, 0, tensors[-1].stop, self)  # once: it looks at the scales

    def quantizer(self, chunk: Chunk) -> Quantizer:
        """The quantizer of a chunk's weights with its scales as they are now."""
        if chunk.tensor not in self.values:
            return chunk.initial
        key = (chunk.tensor, chunk.part.start, chunk.part.stop)
        if key not in self._now:
            tensor, scales = self.tensors[chunk.tensor], self.values[chunk.tensor].detach()
            scales = scales.clone() if tensor.scale and tensor.scale.learned else scales  # trained in place
            size, start, stop = tensor.group_size, chunk.part.start, chunk.part.stop
            if len(scales) == 1:
                self._now[key] = chunk.initial.rescaled(scales[0])
            elif start % size == 0 == stop % size:
                quantizer = chunk.initial.rescaled(scales[start // size : stop // size, None])
                self._now[key] = GroupedQuantizer(quantizer, size)
            else:  # a group larger than a chunk
                first = start // size
                scales = scales[first : -(-stop // size)].repeat_interleave(size)
                self._now[key] = chunk.initial.rescaled(scales[start - first * size :][: stop - start])
        return self._now[key]

    @property
    def learned(self) -> dict[int, nn.Parameter]:
        """The scales that the optimizer trains, by number of the tensor."""
        return {number: values for number, values in self.values.items() if isinstance(values, nn.Parameter)}

    def computed(self, weights: Tensor) -> dict[int, Tensor]:
        """The scales that these weights, flat as the buffer, give by each tensor's rule; not those that are learned."""
        computed = {}
        for number in self.values:
            tensor = self.tensors[number]
            if isinstance(tensor.scale, MovingScale):
                rows = weights[tensor.start : tensor.stop].view(-1, tensor.group_size)
                computed[number] = tensor.scale.now(rows)
        return computed

    def changed_by_map(self) -> dict[int, Tensor]:
        """The scales of these weights after M, by the rules whose scale M does not keep."""
        computed = self.computed(self.buffer)
        rules = {number: self.tensors[number].scale for number in computed}
        return {number: scales for number, scales in computed.items() if (rule := rules[number]) and not rule.kept}

    @torch.no_grad()
    def follow(self) -> None:
        """Sets the scales to those of the member's weights."""
        self.set(self.computed(self.buffer))

    @torch.no_grad()
    def set(self, values: dict[int, Tensor]) -> None:
        """Sets the scales, by number of the tensor, those of learned ones to positive values.

        Quantizers made before keep theirs.
        """
        for number, scales in values.items():
            if number not in self.learned:
                self.values[number] = scales.to(self.buffer)
            elif scales is not self.values[number]:
                self.values[number].copy_(scales)
        for parameter in self.learned.values():
            parameter.clamp_(min=torch.finfo(parameter.dtype).tiny)
        self._now = {}

    @property
    def has_gradient(self) -> bool:
        """Whether any scale passes a gradient on."""
        return any(tensor.scale is not None and tensor.scale.has_gradient for tensor in self.tensors)

    @torch.no_grad()
    def gradients(self, of_weights: dict[int, Tensor], quantized: Tensor, seen: Seen) -> dict[int, Tensor]:
        """Σ G·(q(x) - x·g(x)) by group, of each scale that passes a gradient on, by number of the tensor.

        Args:
            of_weights: G at the quantized weights, flat, by number of the tensor.
            quantized: the quantized weights, flat as the buffer. M keeps levels, so they are q(w) for any ``seen``.
            seen: the weights w = s·x and g(w) of each chunk, from its latent weights and quantizer.
        """
        sums = {}
        for number, gradient in of_weights.items():
            tensor, terms = self.tensors[number], torch.empty_like(gradient)
            if tensor.scale is None or not tensor.scale.has_gradient:
                continue
            without_g = tensor.scale.learned is not None and not tensor.scale.learned.with_g
            for chunk in (chunk for chunk in self.chunks if chunk.tensor == number):
                quantizer = chunk.quantizer
                w, g = seen(self.buffer[chunk.where], quantizer)
                inside = quantizer.gradient_mask(w) if without_g else g
                torch.addcmul(quantized[chunk.where], w, inside, value=-1, out=terms[chunk.part])
                terms[chunk.part].mul_(gradient[chunk.part]).div_(quantizer.max)
            sums[number] = terms.view(-1, tensor.group_size).sum(1)
        return sums

    @torch.no_grad()
    def pass_on(self, gradients: dict[int, Tensor], of_latent: dict[int, Tensor], seen: Seen | None) -> None:
        """Gives learned scales their gradients, and the largest weight of a group that of a scale that depends on it.

        Args:
            gradients: of the scales; see ``gradients``.
            of_latent: gradients of the latent weights, flat, by number of the tensor; changed in place.
            seen: given for a counterpart that sees scales as the reference does. Its gradients lack the factor g of the
                reference's, so what it adds to them is divided by g.
        """
        for number, sums in gradients.items():
            tensor, size = self.tensors[number], self.tensors[number].group_size
            if tensor.scale is not None and tensor.scale.learned is not None:
                self.values[number].grad = sums * tensor.scale.learned.gradient_factor(tensor.quantizer, size)
                continue
            latent = self.buffer[tensor.start : tensor.stop]
            largest = latent.view(-1, size).abs().argmax(1) + size * torch.arange(len(sums), device=sums.device)
            added = sums * latent[largest].sign()
            if seen is not None:
                scales = self.values[number] if len(sums) > 1 else self.values[number][0]
                added = added / seen(latent[largest], tensor.quantizer.rescaled(scales))[1]
            of_latent[number].index_add_(0, largest, added)

"""The scales of one member's tensors, where they move with its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qat_ste.fake_quant.flat_layout import Chunk, FlatTensor
from qat_ste.quantizers.quantizer import Quantizer


class MemberScales:
    """One scale per group of weights of each tensor that has a moving scale.

    Args:
        tensors: the layout of the member's weights; a tensor's initial quantizer holds its initial scales.
        buffer: the member's flat latent weights, which it always reads as they are.
    """

    def __init__(self, tensors: Sequence[FlatTensor], buffer: Tensor) -> None:
        self.tensors, self.buffer = tensors, buffer
        self.values = {
            number: tensor.initial_scales.to(buffer, copy=True)
            for number, tensor in enumerate(tensors)
            if tensor.scale is not None
        }
        self._now: dict[tuple[int, int, int], Quantizer] = {}

    def quantizer(self, chunk: Chunk) -> Quantizer:
        """The quantizer of a chunk's weights with its scales as they are now."""
        if chunk.tensor not in self.values:
            return chunk.initial
        key = (chunk.tensor, chunk.part.start, chunk.part.stop)
        if key not in self._now:
            tensor, scales = self.tensors[chunk.tensor], self.values[chunk.tensor]
            if len(scales) > 1:
                scales = scales.repeat_interleave(tensor.group_size)[chunk.part]
            self._now[key] = chunk.initial.rescaled(scales if len(scales) > 1 else scales[0])
        return self._now[key]

    def computed(self, weights: Tensor) -> dict[int, Tensor]:
        """The scales that these weights, flat as the buffer, give by each tensor's rule."""
        computed = {}
        for number in self.values:
            tensor = self.tensors[number]
            assert tensor.scale is not None
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

    def set(self, values: dict[int, Tensor]) -> None:
        """Sets the scales, by number of the tensor; quantizers made before keep theirs."""
        self.values |= {number: scales.to(self.buffer) for number, scales in values.items()}
        self._now = {}

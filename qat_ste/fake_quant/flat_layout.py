"""Layout of quantized tensors in a flat buffer of weights, and the chunks in which the buffer is processed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qat_ste.quantizers.quantizer import Quantizer, UniformQuantizer
from qat_ste.quantizers.rotation import Rotation
from qat_ste.quantizers.scales import LearnedScale, MovingScale

# Several buffers of this size fit into a CPU's cache, and the overhead of a call is small compared with its work.
CHUNK_WEIGHTS = 1 << 17
GPU_WEIGHTS = 1 << 22  # of a group of chunks on a GPU, where an operation takes about as long as its call


@dataclass(frozen=True)
class FlatTensor:
    """One quantized tensor: weights ``start`` to ``stop`` of the buffer; a tensor ``max`` has one entry per weight.

    Args:
        quantizer: with the initial scale.
        scale: the rule of a scale that moves; each ``group_size`` consecutive weights share one.
        rotation: of the weights before they are quantized; the flat buffer holds rotated ones.
    """

    name: str
    start: int
    stop: int
    quantizer: Quantizer
    scale: MovingScale | LearnedScale | None = None
    group_size: int = 0
    rotation: Rotation | None = None

    @property
    def initial_scales(self) -> Tensor:
        """One per group."""
        max_ = torch.as_tensor(self.quantizer.max)
        return max_[:: self.group_size] if max_.ndim else max_.reshape(1)


class Scales(Protocol):
    """What a chunk asks for the scales of its member."""

    def quantizer(self, chunk: Chunk) -> Quantizer:
        """The quantizer of the chunk's weights now."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive weights of one tensor, at the slice ``where`` of a buffer.

    Args:
        tensor: index of the tensor.
        initial: the quantizer with the initial scale.
        part: of the tensor's weights.
        scales: of the member, where they move.
    """

    tensor: int
    where: slice
    initial: Quantizer
    part: slice
    scales: Scales | None = None

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer as it is now."""
        return self.initial if self.scales is None else self.scales.quantizer(self)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.where.stop - self.where.start


def split_into_chunks(
    tensors: Sequence[FlatTensor], first: int, last: int, scales: Scales | None = None
) -> list[Chunk]:
    """Splits weights ``first`` to ``last`` of the buffer into chunks of one tensor and at most ``CHUNK_WEIGHTS``.

    Where scales move, chunks hold whole groups of weights that share one, unless a group is larger. ``scales`` are
    those of the member whose weights they are; without them the chunks keep the initial ones.
    """
    chunks = []
    for index, tensor in enumerate(tensors):
        size = CHUNK_WEIGHTS
        if tensor.scale is not None and tensor.group_size < size:
            size -= size % tensor.group_size
        for start in range(max(tensor.start, first), min(tensor.stop, last), size):
            stop = min(start + size, tensor.stop, last)
            quantizer = tensor.quantizer
            if isinstance(quantizer.max, Tensor):
                max_ = quantizer.max[start - tensor.start : stop - tensor.start]
                quantizer = quantizer.with_max(max_)
            part, where = slice(start - tensor.start, stop - tensor.start), slice(start - first, stop - first)
            chunks.append(Chunk(index, where, quantizer, part, scales))
    return chunks


@dataclass(frozen=True)
class ChunkGroup:
    """Consecutive chunks that are processed together, at the slice ``where`` of a buffer."""

    chunks: tuple[Chunk, ...]
    where: slice
    joined: Quantizer | None = None  # of several chunks, whose scales do not move

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer as it is now."""
        return self.joined or self.chunks[0].quantizer

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each chunk."""
        return [chunk.size for chunk in self.chunks]


def group_chunks(chunks: Sequence[Chunk], like: Tensor) -> list[ChunkGroup]:
    """Groups consecutive chunks with equally spaced levels; ``like`` has dtype and device of the weights."""
    groups: list[list[Chunk]] = []
    most = most_weights(like.device)
    for chunk in chunks:
        start = groups[-1][0].where.start if groups else -most
        joins = isinstance(chunk.initial, UniformQuantizer) and chunk.scales is None
        if chunk.where.stop - start <= most and joins:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    chunk_groups = []
    for group in groups:
        quantizer, joined = group[0].initial, None
        differ = any(chunk.initial is not quantizer for chunk in group)
        if isinstance(quantizer, UniformQuantizer) and differ:
            joined = quantizer.joined([chunk.initial for chunk in group], [chunk.size for chunk in group], like)
        chunk_groups.append(ChunkGroup(tuple(group), slice(group[0].where.start, group[-1].where.stop), joined))
    return chunk_groups


def most_weights(device: torch.device) -> int:
    """The most weights of a group on this device."""
    return CHUNK_WEIGHTS if device.type == "cpu" else GPU_WEIGHTS


def level_indices(chunk_groups: Sequence[ChunkGroup], weights: Tensor) -> Iterator[Tensor]:
    """Yields the index of each weight's level, one chunk group at a time; ``weights`` can have one row per member."""
    for chunk_group in chunk_groups:
        yield chunk_group.quantizer.index(weights[..., chunk_group.where])

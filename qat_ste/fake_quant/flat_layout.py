"""Where quantized tensors lie in a flat buffer of weights, and in what pieces it is worked through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qat_ste.quantizers.quantizer import Quantizer, UniformQuantizer

# Some buffers of so many fit into a processor's cache, and to call an operation costs little beside what it does.
PIECE_WEIGHTS = 1 << 17


@dataclass(frozen=True)
class Part:
    """One quantized tensor: weights ``start`` to ``stop`` of the whole buffer; a ``max`` by channel is spread flat."""

    name: str
    start: int
    stop: int
    quantizer: Quantizer


@dataclass(frozen=True)
class Piece:
    """Some neighbouring weights of one part, ``where`` they lie in the buffer at hand."""

    part: int
    where: slice
    quantizer: Quantizer

    @property
    def size(self) -> int:
        return self.where.stop - self.where.start


def pieces_of(parts: Sequence[Part], first: int, last: int) -> list[Piece]:
    """Weights ``first`` to ``last`` of the whole buffer in pieces that lie within one part and are not too long."""
    found = []
    for number, part in enumerate(parts):
        for start in range(max(part.start, first), min(part.stop, last), PIECE_WEIGHTS):
            stop = min(start + PIECE_WEIGHTS, part.stop, last)
            quantizer = part.quantizer
            if isinstance(quantizer.max, Tensor):
                max_ = quantizer.max[start - part.start : stop - part.start]
                quantizer = quantizer.with_max(max_)
            found.append(Piece(number, slice(start - first, stop - first), quantizer))
    return found


@dataclass(frozen=True)
class Block:
    """Neighbouring pieces that are worked on as one, ``where`` they lie in the buffer at hand."""

    pieces: tuple[Piece, ...]
    where: slice
    quantizer: Quantizer

    @property
    def sizes(self) -> list[int]:
        return [piece.size for piece in self.pieces]


def blocks_of(pieces: Sequence[Piece], like: Tensor) -> list[Block]:
    """The pieces of a buffer of weights ``like`` these, small ones joined where their levels are equally spaced."""
    joined: list[list[Piece]] = []
    for piece in pieces:
        start = joined[-1][0].where.start if joined else -PIECE_WEIGHTS
        if piece.where.stop - start <= PIECE_WEIGHTS and isinstance(piece.quantizer, UniformQuantizer):
            joined[-1].append(piece)
        else:
            joined.append([piece])
    blocks = []
    for some in joined:
        quantizer = some[0].quantizer
        if isinstance(quantizer, UniformQuantizer) and len(some) > 1:
            quantizer = quantizer.joined([p.quantizer for p in some], [p.size for p in some], like)
        blocks.append(Block(tuple(some), slice(some[0].where.start, some[-1].where.stop), quantizer))
    return blocks


def levels_of(blocks: Sequence[Block], weights: Tensor) -> Iterator[Tensor]:
    """The number of each weight's level, block by block; ``weights`` may hold several members, a row each."""
    for block in blocks:
        yield block.quantizer.index(weights[..., block.where])

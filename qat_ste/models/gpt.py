"""A decoder for language models, from 0.1 to 124 million weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat_ste.base.errors import FLAG, OneOf, require

SIZES = {"nano": (64, 2, 4), "micro": (128, 5, 4), "small": (768, 12, 12)}  # width, layers, heads
FEED_FORWARDS, POSITIONS = ("gelu", "swiglu"), ("learned", "rotary")
GPT2_WIDTH, GPT2_DEVIATION = 768, 0.02  # of its initial weights


@dataclass(frozen=True)
class _Shape:
    width: int
    layers: int
    heads: int
    context: int
    feed_forward: str
    rotary: bool


class Attention(nn.Module):
    """Causal self-attention."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.rotary = shape.rotary
        if shape.rotary:
            half = shape.width // shape.heads // 2
            frequencies = 10_000.0 ** (-torch.arange(half) / half)
            angles = torch.arange(shape.context)[:, None] * frequencies
            self.register_buffer("cosine", angles.cos(), persistent=False)
            self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary:
            q, k = self._rotated(q), self._rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))

    def _rotated(self, x: Tensor) -> Tensor:
        """Turns pairs of channels by an angle that grows with the position (arXiv 2104.09864)."""
        cosine, sine = self.cosine[: x.shape[-2]].to(x.dtype), self.sine[: x.shape[-2]].to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cosine - b * sine, a * sine + b * cosine), -1)


class FeedForward(nn.Module):
    """Two dense layers; with SwiGLU (arXiv 2002.05202) a third one gates the first."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        gated = shape.feed_forward == "swiglu"
        hidden = 32 * math.ceil(shape.width * 8 / 3 / 32) if gated else 4 * shape.width
        self.up = nn.Linear(shape.width, hidden)
        self.gate = nn.Linear(shape.width, hidden) if gated else None
        self.down = nn.Linear(hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        return self.down(hidden)


class Block(nn.Module):
    """Attention and feed-forward layers, each with its normalization before and a sum after."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.LayerNorm(shape.width)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class GPT(nn.Module):
    """Tokens (int64, windows x tokens) -> logits of the next tokens (windows x tokens x vocabulary)."""

    def __init__(self, shape: _Shape, vocabulary: int, tied: bool) -> None:
        super().__init__()
        self.context = shape.context
        self.embedding = nn.Embedding(vocabulary, shape.width)
        self.positions = None if shape.rotary else nn.Embedding(shape.context, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self._initialize(shape.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[-1] > self.context:
            raise ValueError(f"windows have {tokens.shape[-1]} tokens, more than the context of {self.context}")
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens.shape[-1]]
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def _initialize(self, layers: int) -> None:
        """As GPT-2: normal, smaller where a layer adds to the residual stream, biases 0.

        The standard deviation is GPT-2's 0.02 at its width, and grows with 1/√width below.
        """
        deviation = GPT2_DEVIATION * math.sqrt(GPT2_WIDTH / self.embedding.embedding_dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2:
                adds = name.endswith(("out.weight", "down.weight"))
                parameter.normal_(0, deviation / math.sqrt(2 * layers) if adds else deviation)
            elif name.endswith("bias"):
                parameter.zero_()


def gpt(
    size: str = "nano",
    feed_forward: str = "gelu",
    positions: str = "learned",
    tied: bool = False,
    context: int = 64,
    num_classes: int = 256,
) -> nn.Module:
    """A pre-norm decoder (Radford et al. 2019) without dropout.

    Args:
        size: ``nano``: 0.1 million weights in its layers; ``micro``: 1 million; ``small``: GPT-2's 124 million with its
            vocabulary of 50257, a context of 1024 and ``tied``.
        feed_forward: ``gelu``, or ``swiglu`` with two thirds of its width in three layers.
        positions: ``learned`` embeddings, or ``rotary``.
        tied: whether the head's weights are those of the embedding.
        context: the most tokens of a window.
        num_classes: tokens of the vocabulary.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """
    require(OneOf(tuple(SIZES)), size=size)
    require(OneOf(FEED_FORWARDS), feed_forward=feed_forward)
    require(OneOf(POSITIONS), positions=positions)
    require(FLAG, tied=tied)
    return GPT(_Shape(*SIZES[size], context, feed_forward, positions == "rotary"), num_classes, tied)

"""The decoder of language models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat_ste import ArgumentError, Quantization, quantize_weights, quantized_tensors
from qat_ste.estimators import Ste
from qat_ste.models import gpt

LAYERS = Quantization(include=["Linear"], exclude=["head"])


def weights(model: nn.Module, ndim: int = 2) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim >= ndim and "block" in name)


def test_sizes():
    assert weights(gpt()) == 2 * 12 * 64**2  # 0.1 million
    assert weights(gpt("micro")) == 5 * 12 * 128**2  # 1 million
    with torch.device("meta"):
        small = gpt("small", context=1024, num_classes=50257, tied=True)
    assert sum(p.numel() for p in small.parameters()) == 124_439_808, "GPT-2's"


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("feed_forward", ["gelu", "swiglu"])
def test_logits_depend_on_earlier_tokens_alone_and_on_their_order(positions, feed_forward):
    model = gpt(positions=positions, feed_forward=feed_forward, context=12).double()
    tokens = torch.randint(256, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 256
    a, b = model(tokens), model(changed)
    assert a.shape == (2, 12, 256)
    assert torch.equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] != b[:, 7:]).any(-1).all()
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    assert (model(swapped)[:, -1] - a[:, -1]).abs().max() > 1e-6, "without positions, their order would not matter"


def test_rotary_positions_turn_pairs_of_channels_as_complex_numbers():
    attention = gpt(positions="rotary", context=12).blocks[0].attention
    x = torch.randn(1, 4, 12, 16)
    angles = torch.tensor([[m * 10_000 ** (-i / 8) for i in range(8)] for m in range(12)], dtype=torch.float64)
    turned = torch.complex(*x.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(attention._rotated(x).double(), expected, atol=1e-5, rtol=1e-5)  # float32
    scores = (attention._rotated(x[:, :, :1].expand_as(x)) @ attention._rotated(x[:, :, 1:2].expand_as(x)).mT)[0, 0]
    torch.testing.assert_close(scores[3, 1], scores[9, 7], msg="scores depend on the distance alone")


def test_swiglu_is_a_gated_product():
    layer = gpt(feed_forward="swiglu").blocks[0].feed_forward.double()
    x = torch.randn(3, 64, dtype=torch.float64)
    gate = x @ layer.gate.weight.T + layer.gate.bias
    expected = (gate / (1 + (-gate).exp()) * (x @ layer.up.weight.T + layer.up.bias)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected + layer.down.bias)


def test_all_dense_layers_but_the_head_are_quantized():
    model = quantize_weights(gpt(feed_forward="swiglu", tied=True), LAYERS, Ste())
    names = [name for name, _, _ in quantized_tensors(model)]
    kinds = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.gate", "feed_forward.down")
    assert names == [f"blocks.{block}.{kind}.weight" for block in (0, 1) for kind in kinds]
    assert model.head.weight is model.embedding.weight


def test_what_is_not_allowed_is_refused():
    for arguments in ({"size": "huge"}, {"feed_forward": "relu"}, {"positions": "none"}, {"tied": "yes"}):
        with pytest.raises(ArgumentError, match=next(iter(arguments))):
            gpt(**arguments)
    with pytest.raises(ValueError, match="13 tokens, more than the context of 12"):
        gpt(context=12)(torch.zeros(1, 13, dtype=torch.long))

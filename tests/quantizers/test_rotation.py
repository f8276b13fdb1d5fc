"""Rotation of weights before they are quantized."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qat_ste import ArgumentError, Quantization, quantize_weights, remove_quantizers
from qat_ste.estimators import Ste, Tanh
from qat_ste.quantizers.rotation import Rotation


def slow(w: np.ndarray, size: int) -> np.ndarray:
    """H_ij = (-1)^(number of common one bits of i and j), over √size, block by block."""
    h = np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / size**0.5
    return np.concatenate([h @ block for block in w.reshape(-1, size)]).reshape(w.shape)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_blocks_are_multiplied_by_hadamard_matrices(size):
    w = torch.randn(6, 2, 4, dtype=torch.float64)
    rotated = Rotation(size)(w)
    assert np.allclose(rotated.numpy(), slow(w.numpy(), size), atol=1e-14)
    assert torch.allclose(Rotation(size)(rotated), w, atol=1e-14)
    assert not torch.allclose(rotated, w, atol=0.1)


def test_weights_are_rotated_quantized_and_rotated_back():
    layer = nn.Linear(8, 3)
    w = layer.weight.detach().double()
    quantize_weights(
        layer_model := nn.Sequential(layer), Quantization(include=["Linear"], scale=0.4, rotation=4), Ste()
    )
    step = 0.8 / 3
    z = torch.tensor(slow(w.numpy(), 4))
    levels = (np.floor(np.clip(z.numpy() / step, -2, 1.999)) + 0.5) * step
    assert np.allclose(layer.weight.detach().numpy(), slow(levels, 4), atol=1e-6)
    remove_quantizers(layer_model)
    assert np.allclose(layer.weight.detach().numpy(), slow(levels, 4), atol=1e-6)


def test_the_gradient_is_rotated_multiplied_by_g_and_rotated_back():
    layer, estimator = nn.Linear(8, 3).double(), Tanh(5.5)
    latent = layer.weight.detach().clone()
    quantize_weights(nn.Sequential(layer), Quantization(include=["Linear"], scale=0.4, rotation=8), estimator)
    upstream = torch.randn(3, 8, dtype=torch.float64)
    (layer.weight * upstream).sum().backward()
    quantizer = layer.parametrizations.weight[0].quantizer
    g = estimator.derivative(torch.tensor(slow(latent.numpy(), 8)), quantizer).numpy()
    expected = slow(g * slow(upstream.numpy(), 8), 8)
    assert np.allclose(layer.parametrizations.weight.original.grad.numpy(), expected, atol=1e-12)
    assert not np.allclose(expected, g * upstream.numpy(), atol=0.1)  # the control: without the rotation


def test_a_state_dict_keeps_the_rotation():
    quantization = Quantization(include=["Linear"], rotation=4)
    first, second = (quantize_weights(nn.Sequential(nn.Linear(8, 3)), quantization, Ste()) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first[0].weight, second[0].weight)
    plain = quantize_weights(nn.Sequential(nn.Linear(8, 3)), Quantization(include=["Linear"]), Ste())
    plain.load_state_dict(first.state_dict())
    assert torch.equal(first[0].weight, plain[0].weight)


@pytest.mark.parametrize("size", [0, 1, 3, 12, 2**15, True, "4"])
def test_sizes_are_powers_of_two(size):
    with pytest.raises(ArgumentError, match="rotation must be .*a power of two from 2 to 16384"):
        Quantization(rotation=size)


def test_a_size_that_does_not_divide_a_channel_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(ArgumentError, match=r"a power of two that divides 9, the weights of a channel .*0\.weight"):
        quantize_weights(model, Quantization(rotation=8), Ste())
    with pytest.raises(ArgumentError, match=r"that divides 72, .*at most 8.*1\.weight"):
        quantize_weights(model, Quantization(rotation=16, exclude=["0"]), Ste())
    quantize_weights(model, Quantization(rotation=8, exclude=["0"]), Ste())

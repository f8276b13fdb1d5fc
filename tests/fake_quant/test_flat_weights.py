"""Flat buffers of quantized tensors give the same bits as each tensor's parametrization."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste.base.sections import Quantization
from qat_ste.estimators import Ede, Ewgs, Power, Ste, Tanh
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from qat_ste.fake_quant.flat_layout import CHUNK_WEIGHTS, group_chunks, split_into_chunks
from qat_ste.fake_quant.flat_weights import FlatWeights, flat_tensors


class Wide(nn.Module):
    """Small tensors that are grouped, and a large one that is split into chunks; all weights enter in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(30, 7), nn.Linear(9, 90), nn.Linear(500, 400), nn.Linear(3, 5)])

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        tensors = [(layer.weight, layer.bias) for layer in self.layers]
        return sum((scale * weight * (weight + 1)).sum() + (scale * bias).sum() for weight, bias in tensors)


linear = partial(Quantization, include=["Linear"])


def flatten(model: nn.Module, size: int = 0) -> FlatWeights:
    tensors = flat_tensors(model)
    estimator = next(quantized_tensors(model))[2].estimator
    buffers = torch.zeros(2, size or tensors[-1].stop)
    return FlatWeights(
        model, estimator, tensors, group_chunks(split_into_chunks(tensors, 0, tensors[-1].stop), buffers[0]), *buffers
    )


def spread(w: torch.Tensor) -> None:
    """Sets weights inside the range, outside it, and on thresholds and levels."""
    bound = w.abs().max()
    w.copy_((torch.rand_like(w) - 0.5) * 5 * bound)
    w.view(-1)[:4] = torch.tensor([0.0, bound, -bound, bound / 3])


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def by_channel(w: torch.Tensor) -> torch.Tensor:
    return w.detach().abs().amax(-1, keepdim=True) if w.ndim == 2 else w.detach().abs().max()


@pytest.mark.parametrize("ranges", [None, by_channel], ids=["by tensor", "by channel"])
@pytest.mark.parametrize("saturation", ["range", "bin", "none"])
@pytest.mark.parametrize(
    ("estimator", "grid"),
    [
        (Tanh(5.5), {"bits": 2}),
        (Ewgs(0.2), {"bits": 4}),
        (Ste(), {"bits": 1}),
        (Power(2.0), {"bits": 2, "levels": "nf4"}),
    ],
    ids=["tanh", "ewgs", "ste", "power"],
)
def test_values_and_gradients_equal_those_of_the_parametrization_bit_for_bit(estimator, grid, saturation, ranges):
    torch.manual_seed(0)
    arguments = {"max": ranges} if ranges else {}
    model = quantize_weights(Wide(), linear(biases=True, saturation=saturation, **grid), estimator, **arguments)
    with torch.no_grad():
        for _, latent, _ in quantized_tensors(model):
            spread(latent)
    plain = copy.deepcopy(model)
    flat = flatten(model)
    for layer, plain_layer in zip(model.layers, plain.layers, strict=True):
        with flat.quantized():
            assert torch.equal(layer.weight, plain_layer.weight)
            assert torch.equal(layer.bias, plain_layer.bias)
    scale = torch.tensor(0.7)
    with flat.quantized():
        model(scale).backward()
    raw = {name: gradient.clone() for name, gradient in gradients(model).items()}
    flat.estimate()
    plain(scale).backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradients(model)[name], gradient), name
    changed = [name for name in raw if not torch.equal(raw[name], gradients(model)[name])]
    assert bool(changed) == (not (isinstance(estimator, Ste) and saturation == "none")), "negative control"


def test_small_tensors_are_grouped_and_large_ones_split():
    model = quantize_weights(Wide(), linear(), Ste())
    tensors, weights = flat_tensors(model), torch.zeros(1)
    chunk_groups = group_chunks(split_into_chunks(tensors, 0, tensors[-1].stop), weights)
    assert [len(chunk_group.chunks) for chunk_group in chunk_groups] == [2, 1, 2]
    tail = 200_000 - CHUNK_WEIGHTS + 15
    assert [chunk_group.where.stop - chunk_group.where.start for chunk_group in chunk_groups] == [
        1020,
        CHUNK_WEIGHTS,
        tail,
    ]
    assert tail <= CHUNK_WEIGHTS
    uneven = flat_tensors(quantize_weights(Wide(), linear(levels="ternary"), Ste()))
    assert len(group_chunks(split_into_chunks(uneven, 0, uneven[-1].stop), weights)) == 5, (
        "uneven grids are not grouped"
    )


def small(tied: bool = False) -> tuple[nn.Sequential, FlatWeights]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    if tied:
        model[1].weight = model[0].weight
    quantize_weights(model, linear(), Tanh(5.5))
    return model, flatten(model)


def test_latent_weights_are_views_of_one_buffer():
    model = quantize_weights(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), linear(biases=True), Tanh(5.5))
    before = {name: latent.detach().clone() for name, latent, _ in quantized_tensors(model)}
    tensors = {tensor.name: slice(tensor.start, tensor.stop) for tensor in flat_tensors(model)}
    flat = flatten(model, 10_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, latent, _ in quantized_tensors(model):
        assert torch.equal(flat.buffer[tensors[name]].view_as(latent), before[name])
    model(torch.rand(2, 6)).sum().backward()
    optimizer.step()
    for name, latent, _ in quantized_tensors(model):
        assert torch.equal(flat.buffer[tensors[name]].view_as(latent), latent)
        assert not torch.equal(latent, before[name])


def test_gradients_of_tied_weights_add_up_before_the_estimator():
    model, flat = small(tied=True)
    plain, x = copy.deepcopy(model), torch.rand(3, 4)
    with flat.quantized():
        model(x).sum().backward()
    flat.estimate()
    plain(x).sum().backward()
    (gradient,), (expected,) = gradients(model).values(), gradients(plain).values()
    torch.testing.assert_close(gradient, expected)


def test_remembered_levels_are_used_until_a_weight_changes():
    model, flat = small()
    with flat.quantized():
        before = [layer.weight.clone() for layer in model]
    with torch.no_grad(), flat.quantized():
        model[0].weight.fill_(0.5)
    flat.remember()
    with flat.quantized():
        assert (model[0].weight == 0.5).all()
    with torch.no_grad():
        model[1].parametrizations.weight.original.mul_(1.0)  # a write counts as a change, even with the same values
    with flat.quantized():
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True))


def test_an_error_in_the_context_keeps_the_latent_weights():
    model, flat = small()
    latent = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt), flat.quantized():
        assert not torch.equal(model[0].parametrizations.weight.original, latent[0])
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(model.parameters(), latent, strict=True))
    assert not torch.equal(model[0].weight, latent[0]), "quantized again"


def test_a_parameter_without_gradient_keeps_none():
    model, flat = small()
    with flat.quantized():
        model[1](torch.rand(3, 4)).sum().backward()
    flat.estimate()
    first, second = gradients(model).values()
    assert first is None
    assert second is not None


def test_an_estimator_on_the_whole_line_uses_the_range_of_each_tensor():
    torch.manual_seed(0)
    model = quantize_weights(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 9)), linear(bits=1), Ede(2.0))
    flat, plain = flatten(model), copy.deepcopy(model)
    with flat.quantized():
        model(torch.ones(1, 4)).sum().backward()
    flat.estimate()
    plain(torch.ones(1, 4)).sum().backward()
    for gradient, expected in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        assert torch.equal(gradient, expected)

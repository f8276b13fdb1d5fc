"""The flat buffer of a model's quantized tensors: to the bit what each tensor's own parametrization does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qat_ste.estimators import Ede, Ewgs, Power, Ste, Tanh
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from qat_ste.fake_quant.flat_layout import PIECE_WEIGHTS, blocks_of, pieces_of
from qat_ste.fake_quant.flat_weights import FlatWeights, parts_of


class Wide(nn.Module):
    """Small tensors that are worked on as one, and one that is worked on in pieces; all weights are used alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(30, 7), nn.Linear(9, 90), nn.Linear(500, 400), nn.Linear(3, 5)])

    def forward(self, scale: torch.Tensor) -> torch.Tensor:
        found = [(layer.weight, layer.bias) for layer in self.layers]
        return sum((scale * weight * (weight + 1)).sum() + (scale * bias).sum() for weight, bias in found)


def flatten(model: nn.Module, size: int = 0) -> FlatWeights:
    parts = parts_of(model)
    estimator = next(quantized_tensors(model))[2].estimator
    buffers = torch.zeros(2, size or parts[-1].stop)
    return FlatWeights(model, estimator, parts, blocks_of(pieces_of(parts, 0, parts[-1].stop), buffers[0]), *buffers)


def spread(w: torch.Tensor) -> None:
    """Inside the range, beyond it, and on the edges between levels."""
    bound = w.abs().max()
    w.copy_((torch.rand_like(w) - 0.5) * 5 * bound)
    w.view(-1)[:4] = torch.tensor([0.0, bound, -bound, bound / 3])


def trained(model: nn.Module) -> dict[str, torch.Tensor | None]:
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
def test_values_and_gradients_are_to_the_bit_those_of_the_parametrization(estimator, grid, saturation, ranges):
    torch.manual_seed(0)
    arguments = {"max": ranges} if ranges else {}
    model = quantize_weights(Wide(), estimator=estimator, biases=True, saturation=saturation, **grid, **arguments)
    with torch.no_grad():
        for _, latent, _ in quantized_tensors(model):
            spread(latent)
    plain = copy.deepcopy(model)
    flat = flatten(model)
    for layer, its in zip(model.layers, plain.layers, strict=True):
        with flat.quantized():
            assert torch.equal(layer.weight, its.weight)
            assert torch.equal(layer.bias, its.bias)
    scale = torch.tensor(0.7)
    with flat.quantized():
        model(scale).backward()
    raw = {name: gradient.clone() for name, gradient in trained(model).items()}
    flat.estimate()
    plain(scale).backward()
    for name, gradient in trained(plain).items():
        assert torch.equal(trained(model)[name], gradient), name
    changed = [name for name in raw if not torch.equal(raw[name], trained(model)[name])]
    assert bool(changed) == (not (isinstance(estimator, Ste) and saturation == "none")), "negative control"


def test_small_tensors_are_joined_and_large_ones_cut():
    model = quantize_weights(Wide(), 2, Ste())
    parts, weights = parts_of(model), torch.zeros(1)
    blocks = blocks_of(pieces_of(parts, 0, parts[-1].stop), weights)
    assert [len(block.pieces) for block in blocks] == [2, 1, 2]
    tail = 200_000 - PIECE_WEIGHTS + 15
    assert [block.where.stop - block.where.start for block in blocks] == [1020, PIECE_WEIGHTS, tail]
    assert tail <= PIECE_WEIGHTS
    uneven = parts_of(quantize_weights(Wide(), 2, Ste(), levels="ternary"))
    assert len(blocks_of(pieces_of(uneven, 0, uneven[-1].stop), weights)) == 5, "each with its own thresholds"


def small(tied: bool = False) -> tuple[nn.Sequential, FlatWeights]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    if tied:
        model[1].weight = model[0].weight
    quantize_weights(model, 2, Tanh(5.5))
    return model, flatten(model)


def test_latent_weights_are_views_of_one_buffer():
    model = quantize_weights(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), 2, Tanh(5.5), biases=True)
    before = {name: latent.detach().clone() for name, latent, _ in quantized_tensors(model)}
    parts = {part.name: slice(part.start, part.stop) for part in parts_of(model)}
    flat = flatten(model, 10_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, latent, _ in quantized_tensors(model):
        assert torch.equal(flat.buffer[parts[name]].view_as(latent), before[name])
    model(torch.rand(2, 6)).sum().backward()
    optimizer.step()
    for name, latent, _ in quantized_tensors(model):
        assert torch.equal(flat.buffer[parts[name]].view_as(latent), latent)
        assert not torch.equal(latent, before[name])


def test_gradients_of_tied_weights_add_up_before_the_estimator():
    model, flat = small(tied=True)
    plain, x = copy.deepcopy(model), torch.rand(3, 4)
    with flat.quantized():
        model(x).sum().backward()
    flat.estimate()
    plain(x).sum().backward()
    (gradient,), (expected,) = trained(model).values(), trained(plain).values()
    torch.testing.assert_close(gradient, expected)


def test_levels_that_are_known_are_used_until_a_weight_changes():
    model, flat = small()
    with flat.quantized():
        before = [layer.weight.clone() for layer in model]
    with torch.no_grad(), flat.quantized():
        model[0].weight.fill_(0.5)
    flat.remember()
    with flat.quantized():
        assert (model[0].weight == 0.5).all()
    with torch.no_grad():
        model[1].parametrizations.weight.original.mul_(1.0)  # written to, if with the same values
    with flat.quantized():
        assert all(torch.equal(layer.weight, its) for layer, its in zip(model, before, strict=True))


def test_a_fault_on_the_way_leaves_the_latent_weights():
    model, flat = small()
    latent = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(KeyboardInterrupt), flat.quantized():
        assert not torch.equal(model[0].parametrizations.weight.original, latent[0])
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, its) for parameter, its in zip(model.parameters(), latent, strict=True))
    assert not torch.equal(model[0].weight, latent[0]), "and quantizes again"


def test_what_got_no_gradient_keeps_none():
    model, flat = small()
    with flat.quantized():
        model[1](torch.rand(3, 4)).sum().backward()
    flat.estimate()
    first, second = trained(model).values()
    assert first is None
    assert second is not None


def test_an_estimator_for_the_whole_line_sees_each_range():
    torch.manual_seed(0)
    model = quantize_weights(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 9)), 1, Ede(2.0))
    flat, plain = flatten(model), copy.deepcopy(model)
    with flat.quantized():
        model(torch.ones(1, 4)).sum().backward()
    flat.estimate()
    plain(torch.ones(1, 4)).sum().backward()
    for gradient, expected in zip(trained(model).values(), trained(plain).values(), strict=True):
        assert torch.equal(gradient, expected)

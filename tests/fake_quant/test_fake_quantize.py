from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qat_ste import UniformQuantizer, quantized_tensors, remove_quantizers
from qat_ste.estimators import Ste, Tanh
from qat_ste.fake_quant.fake_quantize import FakeQuantize
from tests.arguments import quantized


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Flatten(), nn.Linear(144, 3)
    )


def gradients(call, model, inputs):
    model.zero_grad()
    call(inputs).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_forward_is_the_quantizer_and_backward_the_estimator():
    quantizer, estimator = UniformQuantizer(2, 0.5), Tanh(5.5)
    w = (torch.randn(1000) * 0.5).requires_grad_()
    incoming = torch.randn(1000)
    out = FakeQuantize(quantizer, estimator)(w)
    out.backward(incoming)
    assert torch.equal(out, quantizer(w))
    assert torch.equal(w.grad, incoming * estimator.derivative(w.detach(), quantizer))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_of_edge_levels_and_beyond_are_what_the_saturation_says(compiled):
    """Both edge levels stay alive in every mode: autograd's own clamp would freeze them."""
    points = torch.tensor([-1.5, -1.3, -1.1, -1.0, -1 / 3, 1 / 3, 1.0, 1.1, 1.3, 1.5])
    alive = {
        "range": [0, 0, 0, 1, 1, 1, 1, 0, 0, 0],
        "bin": [0, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        "none": [1] * 10,
    }
    for saturation, expected in alive.items():
        for estimator in (Ste(), Tanh(5.5)):
            for max_ in (0.3, torch.tensor([0.3])):
                torch.compiler.reset()
                w = (points * 0.3).requires_grad_()
                module = FakeQuantize(UniformQuantizer(2, max_, saturation), estimator)
                call = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
                call(w).sum().backward()
                assert (w.grad != 0).int().tolist() == expected, (saturation, estimator)
                if estimator == Ste():
                    assert w.grad.tolist() == expected


@pytest.mark.slow
def test_compiled_by_inductor_without_a_graph_break():
    model = quantized(network(), Tanh(5.5), biases=True)
    inputs = torch.randn(2, 1, 8, 8)
    compiled = torch.compile(model, fullgraph=True)
    eager_gradients, compiled_gradients = gradients(model, model, inputs), gradients(compiled, model, inputs)
    for eager, fused in zip(eager_gradients, compiled_gradients, strict=True):
        assert torch.allclose(eager, fused, rtol=1e-4, atol=1e-5)


def test_default_quantizes_convolutions_and_linear_layers():
    model = quantized(network(), Ste())
    assert [name for name, _, _ in quantized_tensors(model)] == ["0.weight", "2.0.weight", "4.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "biases", "expected"),
    [
        (["Conv2d"], [], False, ["0.weight", "2.0.weight"]),
        ([nn.Conv2d], [], True, ["0.weight", "0.bias", "2.0.weight", "2.0.bias"]),
        (["2.*"], [], False, ["2.0.weight"]),
        (["*"], ["Linear"], False, ["0.weight", "2.0.weight"]),
        ([nn.Conv2d, nn.Linear], ["0"], False, ["2.0.weight", "4.weight"]),
        ([nn.Linear], [], True, ["4.weight", "4.bias"]),
    ],
)
def test_include_and_exclude_by_name_and_type(include, exclude, biases, expected):
    model = quantized(network(), Ste(), include=include, exclude=exclude, biases=biases)
    assert [name for name, _, _ in quantized_tensors(model)] == expected


def test_a_name_pattern_leaves_normalization_alone_unless_it_is_named_by_type():
    def names(pattern):
        model = quantized(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), Ste(), include=[pattern])
        return [name for name, _, _ in quantized_tensors(model)]

    assert names("*") == ["0.weight"]
    assert names("BatchNorm2d") == ["1.weight"]


def test_refuses():
    with pytest.raises(ValueError, match="'Conv3d' matches none; it has Conv2d, "):
        quantized(network(), Ste(), include=["Conv3d"])
    with pytest.raises(ValueError, match="patterns that leave a weight to quantize, together with exclude"):
        quantized(network(), Ste(), include=["Conv2d"], exclude=["*"])
    with pytest.raises(ValueError, match=r"0\.weight is parametrized already"):
        quantized(quantized(network(), Ste()), Ste())


def test_state_dict_round_trip_restores_weights_and_levels(tmp_path):
    model = quantized(network(), Tanh(5.5), lambda w: 0.3, saturation="bin")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = quantized(network(), Tanh(5.5), bits=4)
    inputs = torch.randn(2, 1, 8, 8)
    assert not torch.equal(other(inputs), model(inputs))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(inputs), model(inputs))
    for before, after in zip(gradients(model, model, inputs), gradients(other, other, inputs), strict=True):
        assert torch.equal(before, after)


def test_back_to_a_plain_module_that_holds_levels():
    plain_keys = list(network().state_dict())
    model = quantized(network(), Tanh(5.5), biases=True)
    inputs = torch.randn(2, 1, 8, 8)
    expected = model(inputs)
    plain = remove_quantizers(copy.deepcopy(model))
    assert type(plain[0]) is nn.Conv2d
    assert torch.equal(plain(inputs), expected)
    assert list(plain.state_dict()) == plain_keys
    assert len(plain[4].weight.unique()) <= 4
    fresh = network()
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh(inputs), expected)


def test_removing_quantizers_from_a_copy_leaves_the_others_theirs():
    model, inputs = quantized(nn.Sequential(nn.Linear(4, 4)), Ste(), biases=True), torch.rand(2, 4)
    copied, expected = copy.deepcopy(model), model(inputs)
    assert torch.equal(remove_quantizers(copied)(inputs), expected)
    assert torch.equal(model(inputs), expected)
    assert not list(quantized_tensors(copied))
    assert len(list(quantized_tensors(model))) == 2


def test_assigning_a_weight_sets_the_latent_weight():
    layer = quantized(nn.Sequential(nn.Linear(4, 4)), Ste())[0]
    latent = torch.rand(4, 4) - 0.5
    layer.weight = latent
    assert torch.equal(layer.parametrizations.weight.original, latent)
    assert not torch.equal(layer.weight, latent)


class UpToOne(Ste):
    def check(self, quantizer):
        if quantizer.max > 1:
            raise ValueError("UpToOne needs a range of at most 1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max": lambda w: 1.0 if w.ndim == 4 else 0.0}, "max must be"),
        (
            {"max": lambda w: 1.0 if w.ndim == 4 else torch.ones(7, 10, 1)},
            r"broadcasts to the weight \(2.weight: \(7, 10, 8\), not \(10, 8\)\)",
        ),
        (
            {"estimator": UpToOne(), "max": lambda w: 6.0 - w.ndim * 1.25},
            r"estimator must be one for these levels \(UpToOne needs a range of at most 1\)",
        ),
    ],
)
def test_weights_are_quantized_all_or_none(arguments, told):
    """The last layer is refused, and the first is as it was."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    before, kinds = {name: values.clone() for name, values in model.state_dict().items()}, list(map(type, model))
    with pytest.raises(ValueError, match=told):
        quantized(model, **({"estimator": Ste()} | arguments))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert list(map(type, model)) == kinds


def test_a_weight_that_is_made_anew_in_each_forward_pass_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), torch.nn.utils.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="1.weight is neither a parameter nor a buffer of its module"):
        quantized(model, Ste())
    assert type(model[0]) is nn.Linear


def test_a_range_by_channel_gives_each_channel_its_levels():
    model = quantized(network(), Ste(), lambda w: w.detach().abs().amax((1, 2, 3), keepdim=True),
                             include=["Conv2d"])  # fmt: skip
    weight = model[0].weight
    assert len(weight[0].unique()) <= 4 < len(weight.unique())

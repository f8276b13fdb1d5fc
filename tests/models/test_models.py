"""Networks: layers, initial weights, errors, and the equality of ``keras_cnn`` with its textbook form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import quantize_weights, quantized_tensors
from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Quantization
from qat_ste.estimators import Ste
from qat_ste.models import flax_cnn, keras_cnn, small_cnn, torchvision_model
from qat_ste.models.layout import ChannelsLast
from qat_ste.quantizers.scales import he_uniform_bound
from scripts.benchmarks.networks import textbook


@pytest.mark.parametrize(
    ("build", "size", "biases", "quantized"),
    [(keras_cnn, 28, True, 92_672), (keras_cnn, 28, False, 92_448), (flax_cnn, 28, False, 18_720),
     (small_cnn, 8, False, 18_720)],
)  # fmt: skip
def test_numbers_of_quantized_weights_follow_the_paper(build, size, biases, quantized):
    model = quantize_weights(build(), Quantization(biases=biases), Ste())
    assert sum(latent.numel() for _, latent, _ in quantized_tensors(model)) == quantized
    assert model(torch.rand(3, 1, size, size)).shape == (3, 10)


def test_keras_cnn_has_three_convolutions_and_a_dense_layer():
    shapes = {name: tuple(parameter.shape) for name, parameter in keras_cnn().named_parameters()}
    assert shapes == {
        "conv1.weight": (32, 1, 3, 3), "conv1.bias": (32,), "conv2.weight": (64, 32, 3, 3), "conv2.bias": (64,),
        "conv3.weight": (128, 64, 3, 3), "conv3.bias": (128,), "dense.weight": (10, 128), "dense.bias": (10,),
    }  # fmt: skip


def test_flax_cnn_has_same_convolutions_and_average_pooling():
    model = flax_cnn()
    assert model.dense1.weight.shape == (256, 64 * 7 * 7)
    assert sum(isinstance(module, nn.AvgPool2d) for module in model) == 2


@pytest.mark.parametrize("build", [small_cnn, keras_cnn, flax_cnn])
def test_weights_fill_the_quantizers_range_exactly(build):
    for name, parameter in build().named_parameters():
        bound = he_uniform_bound(parameter)
        assert parameter.abs().max() <= bound * (1 + 1e-6), name
        if "weight" in name and parameter.numel() > 1000:
            assert parameter.abs().max() > 0.98 * bound, name
            assert parameter.detach().std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
    assert (build is keras_cnn) == bool(build().conv1.bias.any()), "only the keras set-up draws biases"


def test_small_cnn_accepts_square_images_of_any_size():
    assert small_cnn(3, 28, 7)(torch.rand(2, 3, 28, 28)).shape == (2, 7)


def test_resnet50_quantizes_every_convolution_but_not_the_last_layer():
    model = quantize_weights(torchvision_model("resnet50", num_classes=10), Quantization(), Ste())
    latent = {name: parameter for name, parameter, _ in quantized_tensors(model)}
    assert len(latent) == 53
    assert sum(parameter.numel() for parameter in latent.values()) == 23_454_912
    assert {"conv1.weight", "layer1.0.downsample.0.weight"} <= set(latent)
    assert "fc.weight" not in latent
    for name, parameter in latent.items():
        assert parameter.abs().max() > 0.98 * he_uniform_bound(parameter), name
    assert torch.equal(model.bn1.weight, torch.ones(64)), "batch norm keeps torchvision's initial weights"


def test_initialization_torchvision_keeps_the_default():
    from torchvision.models import resnet18

    torch.manual_seed(3)
    ours = torchvision_model("resnet18", "torchvision", num_classes=5).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(ours[name], value) for name, value in resnet18(num_classes=5).state_dict().items())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "resnet"}, "name must be a torchvision network such as resnet18, mobilenet_v2 or vit_b_16, got 'resnet'"),
    ({"initialization": "he"}, "initialization must be one of he_uniform, torchvision, got 'he'"),
])  # fmt: skip
def test_torchvision_model_rejects(arguments, message):
    with pytest.raises(ArgumentError) as error:
        torchvision_model(**arguments)
    assert str(error.value) == message


def whole_numbers(dtype, share):
    """``keras_cnn`` and images with small whole numbers, a share of them zero, so sums are exact in any order."""
    model = keras_cnn().to(dtype)
    for parameter in model.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape).to(dtype)
    for conv in (model.conv1, model.conv2, model.conv3):
        conv.bias.data.zero_()
    images = torch.randint(1, 3, (8, 1, 28, 28)) * (torch.rand(8, 1, 28, 28) >= share)
    return model, images.to(dtype)


def outputs_and_gradients(model, images):
    model.zero_grad()
    outputs = model(images)
    outputs.mul(torch.arange(80).view(8, 10) % 3 - 1).sum().backward()
    return [outputs.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0, 0.9, 1])
def test_keras_cnn_equals_the_textbook_network_bit_for_bit(dtype, share):
    """Without rounding, ReLU before pooling and channels-first layout give the same; many windows have ties."""
    model, images = whole_numbers(dtype, share)
    windows = F.conv2d(images, model.conv1.weight).unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    largest = windows.amax(-1, keepdim=True)
    tied = (windows == largest).sum(-1) > 1
    assert (tied & (largest[..., 0] == 0)).any()
    assert (tied & (largest[..., 0] > 0)).any() or share == 1
    results, expected = outputs_and_gradients(model, images), outputs_and_gradients(textbook(model), images)
    assert max(values.abs().max() for values in expected) < 2**24, "exact in float32 too"
    assert all(torch.equal(result, values) for result, values in zip(results, expected))
    assert expected[1].any() == (share < 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_keras_cnn_equals_the_textbook_network_up_to_the_order_of_sums(dtype, tolerance):
    """Channels-last convolutions add in another order: about one ulp per layer, in sums that partly cancel."""
    model, images = keras_cnn().to(dtype), torch.rand(8, 1, 28, 28, dtype=dtype)
    results, expected = outputs_and_gradients(model, images), outputs_and_gradients(textbook(model), images)
    for result, values in zip(results, expected):
        torch.testing.assert_close(result, values, rtol=0, atol=tolerance * values.abs().max().item())


def test_average_pooling_does_not_commute_with_relu():
    """Negative control."""
    model, images = whole_numbers(torch.float64, 0.5)
    model.pool1 = model.pool2 = model.pool3 = nn.AvgPool2d(2)
    results, expected = outputs_and_gradients(model, images), outputs_and_gradients(textbook(model), images)
    assert not any(torch.allclose(result, values) for result, values in list(zip(results, expected))[:-1])
    assert torch.equal(results[-1], expected[-1]), "the gradient of the last bias depends only on the loss"


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_changes_only_the_memory_layout(channels):
    images = torch.rand(2, channels, 4, 5)
    converted = ChannelsLast()(images)
    assert torch.equal(converted, images)
    assert converted.stride()[1] == 1
    assert nn.Conv2d(channels, 8, 3)(converted).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("initialization", ["he_uniform", "torchvision"])
def test_networks_with_two_heads_are_built_with_one(name, initialization, recwarn):
    with torch.device("meta"):
        model = torchvision_model(name, initialization, num_classes=7)
        assert model.training
        assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
    assert not [module for module, _ in model.named_modules() if module.lower().startswith("aux")]
    assert not recwarn.list


@pytest.mark.parametrize(("name", "size"), [("maxvit_t", 64 * 7), ("vit_b_16", 64), ("swin_t", 64)])
def test_networks_whose_layers_depend_on_the_size_of_the_images(name, size):
    with torch.device("meta"):
        model = torchvision_model(name, image_size=size, num_classes=7)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_small", "quantized_resnet18"]
)
def test_networks_that_classify_no_images_are_refused(name):
    with pytest.raises(ArgumentError, match=f"^name must be a torchvision network such as .*, got '{name}'$"):
        torchvision_model(name)

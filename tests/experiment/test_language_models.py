"""Sequences of tokens as inputs and targets, from Python."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import Execution, L2Penalty, Quantization, Training, compare, quantize_weights, quantized_tensors
from qat_ste.data.task import bits_per_token
from qat_ste.estimators import Ste, Tanh
from qat_ste.models import gpt

ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0)
LAYERS = Quantization(include=["Linear"], exclude=["head"], scale="absmax", granularity="channel")


def batches(count: int, windows: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, (count, windows, 13), generator=generator)
    return [(each[:, :-1].clone(), each[:, 1:].clone()) for each in tokens]


def run(**arguments):
    settings = {
        "build_model": partial(gpt, context=12, num_classes=20), "batches": batches(3), "loss": bits_per_token,
        "estimator": Tanh(5.5), "optimizer": ADAMW, "lr": 1e-3, "quantization": LAYERS,
        "counterparts": ["ste", "replica"], "validation": batches(2), "training": Training(steps=4, seed=0),
        "execution": Execution(device="cpu"),
    }  # fmt: skip
    return compare(**(settings | arguments))


def test_accuracy_is_the_share_of_next_tokens_that_are_predicted():
    comparison = run()
    model, (first, second) = comparison.models["reference"].eval(), batches(2)
    logits = [model(inputs) for inputs, _ in (first, second)]
    right = [float((each.argmax(-1) == targets).float().mean()) for each, (_, targets) in zip(logits, (first, second))]
    assert comparison.reference.test_accuracy == pytest.approx(sum(right) / 2)
    losses = [float(bits_per_token(each, targets).detach()) for each, (_, targets) in zip(logits, (first, second))]
    assert comparison.reference.test_loss == pytest.approx(sum(losses) / 2, rel=1e-6)
    other = [comparison.models["ste"].eval()(inputs) for inputs, _ in (first, second)]
    agree = [float((a.argmax(-1) == b.argmax(-1)).float().mean()) for a, b in zip(logits, other)]
    assert comparison.counterparts["ste"].inference_agreement == pytest.approx(sum(agree) / 2)
    assert comparison.counterparts["replica"].logit_mse == 0


class ClassesSecond(nn.Module):
    """Classes are the second dimension, as ``F.cross_entropy`` has them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = gpt(context=12, num_classes=20)
        self.head = nn.Linear(20, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(tokens)).mT


@pytest.mark.parametrize("classes", [21, 12], ids=["another number than tokens", "as many as tokens"])
def test_classes_in_another_dimension_are_never_taken_for_tokens(classes):
    layers = Quantization(include=["Linear"], exclude=["head", "*.head"], scale="absmax")
    few = [(inputs, targets.clamp(max=11)) for inputs, targets in batches(2)]
    arguments = {"build_model": partial(ClassesSecond, classes), "loss": F.cross_entropy, "batches": few}
    comparison = run(**arguments, quantization=layers, validation=few, training=Training(steps=1, seed=0))
    assert comparison.reference.test_accuracy is None
    assert comparison.reference.test_loss > 0


def test_as_many_tokens_in_a_window_as_in_the_vocabulary():
    few = [(inputs.clamp(max=11), targets.clamp(max=11)) for inputs, targets in batches(2)]
    arguments = {"build_model": partial(gpt, context=12, num_classes=12), "batches": few, "validation": few}
    assert run(**arguments, training=Training(steps=1, seed=0)).reference.test_accuracy is not None


def test_accumulated_gradients_are_those_of_the_batch():
    whole, parts = (run(training=Training(steps=4, accumulate=accumulate, seed=0)) for accumulate in (1, 2))
    assert parts.reference.test_loss == pytest.approx(whole.reference.test_loss, rel=1e-4)


def test_decay_on_matrices_alone():
    model = quantize_weights(gpt(), LAYERS, Ste())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    L2Penalty(1.0, ["matrices"]).add_gradient(model)
    changed = {name: bool(p.grad.any()) for name, p in model.named_parameters()}
    assert {name for name, p in model.named_parameters() if p.ndim >= 2} == {name for name in changed if changed[name]}
    assert not changed["blocks.0.attention.qkv.bias"] and not changed["norm.weight"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    L2Penalty(1.0, ["norm.*", "matrices"]).add_gradient(model)
    assert model.norm.weight.grad.any()


ENCODER = ("linear1.weight", "linear2.weight", "self_attn.out_proj.weight")


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["Linear"], ENCODER),
        (["Linear", "MultiheadAttention"], (*ENCODER, "self_attn.in_proj_weight")),
        (["*self_attn"], ("self_attn.in_proj_weight",)),
    ],
    ids=str,
)
def test_attention_of_torch_is_quantized_as_asked_also_in_its_fast_path(include, expected):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    plain = nn.TransformerEncoder(layer, 2)
    model = nn.TransformerEncoder(layer, 2)
    model.load_state_dict(plain.state_dict())
    quantize_weights(model, Quantization(include=include, scale="absmax", granularity="channel"), Ste())
    found = {name: fake_quantize for name, _, fake_quantize in quantized_tensors(model)}
    assert sorted(found) == sorted(f"layers.{number}.{name}" for number in (0, 1) for name in expected)
    x = torch.randn(3, 5, 8)
    before = plain.eval()(x)
    with torch.no_grad():
        for name, fake_quantize in found.items():
            parameter = plain.get_parameter(name)
            parameter.copy_(fake_quantize.quantizer(parameter))
        expected_outputs = plain(x)
        torch.testing.assert_close(model.eval()(x), expected_outputs, atol=1e-6, rtol=1e-5)  # eval uses the fast path
        torch.testing.assert_close(model.train()(x), expected_outputs, atol=1e-6, rtol=1e-5)
    assert (expected_outputs - before).abs().max() > 1e-2

"""Clipping by norm: what it does, that it breaks the equivalence where the norm is taken after g, and what mends it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import Clipping, Training, quantize_weights
from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from qat_ste.fake_quant.flat_layout import group_chunks, split_into_chunks
from qat_ste.fake_quant.flat_weights import FlatWeights, flat_tensors
from tests.arguments import WEIGHTS
from tests.experiment.swinging import errors
from tests.experiment.tiny import ADAM, SGD, batches, network, run


@pytest.mark.parametrize("norm", [1.0, 100.0])
@pytest.mark.parametrize("at", ["latent", "quantized"])
def test_all_gradients_are_scaled_by_one_factor_of_their_norm(at, norm):
    """Of w·x + b with x = (3, 4) the gradients are 3, 4 and 1: the norm is √26 before the estimator."""
    model = quantize_weights(nn.Sequential(nn.Linear(2, 1)), WEIGHTS, Tanh(5.5), max=lambda w: 1.0)
    with torch.no_grad():
        model[0].parametrizations.weight.original.copy_(torch.tensor([[0.1, -0.5]]))
    _, latent, fake_quantize = next(quantized_tensors(model))
    g = Tanh(5.5).derivative(latent.detach(), fake_quantize.quantizer)
    expected = torch.cat([g * torch.tensor([[3.0, 4.0]]), torch.ones(1, 1)], 1)
    length = expected.norm() if at == "latent" else math.sqrt(26)
    assert abs(expected.norm() - math.sqrt(26)) > 0.1
    tensors, buffers = flat_tensors(model), torch.zeros(2, 2)
    weights = FlatWeights(
        model, Tanh(5.5), tensors, group_chunks(split_into_chunks(tensors, 0, 2), buffers[0]), *buffers
    )
    with weights.quantized():
        model(torch.tensor([[3.0, 4.0]])).sum().backward()
    if at == "latent":
        weights.estimate()
    Clipping(norm, at).clip(model, {})
    if at == "quantized":
        weights.estimate()
    found = torch.cat([latent.grad, model[0].bias.grad[None]], 1)
    torch.testing.assert_close(found, expected * min(1, norm / length))


@pytest.mark.slow
def test_a_norm_before_the_estimator_keeps_the_equivalence_and_one_after_it_has_to_be_mirrored():
    before, after = ([errors(torch.optim.SGD, 2 / steps, steps, clip_norm=5.0, clip_at=at) for steps in (100, 800)]
                     for at in ("quantized", "latent"))  # fmt: skip
    for large, small in ([found["ste"] for found in before], [found["mirrored"] for found in after]):
        assert small < large / 6
        assert small < after[1]["ste"] / 8
    assert after[1]["ste"] > 0.8 * after[0]["ste"], "negative control: an error floor"
    assert [found["ste"] for found in before] == [found["mirrored"] for found in before], "nothing to mirror"


def test_members_where_nothing_has_to_be_mirrored_are_one():
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    members = [
        len(Cohort(model, Tanh(5.5), optimizer, 0.01, ["ste", "mirrored"], training=Training(clip_norm=1.0, clip_at=at)).specs)
        for optimizer in (SGD, ADAM) for at in ("latent", "quantized")
    ]  # fmt: skip
    assert members == [3, 2, 3, 2]


def test_clipping_in_training_is_torchs():
    found = run(clip_norm=0.1, steps=4, counterparts=["replica"], schedule=lambda step: 1.0, validation=None,
                build_model=partial(network, 0.0))  # fmt: skip
    torch.manual_seed(0)
    model = quantize_weights(network(0.0), WEIGHTS, Tanh(5.5))
    optimizer = SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches()[:4]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.2
        optimizer.step()
    for mine, theirs in zip(found.models["reference"].parameters(), model.parameters()):
        torch.testing.assert_close(mine, theirs)


def test_accumulated_gradients_are_clipped_as_those_of_the_whole_batch():
    def plain():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).double()

    data = [(inputs.double(), targets) for inputs, targets in batches()]
    whole, parts = (
        run(build_model=plain, batches=data, validation=None, steps=10, clip_norm=0.1, clip_at="quantized",
            counterparts=["ste"], accumulate=accumulate)
        for accumulate in (1, 4)
    )  # fmt: skip
    assert parts.counterparts["ste"].weight_alignment_error == pytest.approx(
        whole.counterparts["ste"].weight_alignment_error, rel=1e-9
    )


def test_what_it_refuses():
    with pytest.raises(ValueError, match="norm must be a positive finite number, got 0"):
        Clipping(0)
    with pytest.raises(ValueError, match="at must be one of latent, quantized, got 'before'"):
        Clipping(1, "before")

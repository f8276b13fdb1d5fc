"""Weight decay: what it is, that it breaks the equivalence, and the counterpart that decays as its reference does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import SteEquivalent, Training, UniformQuantizer, quantize_weights
from qat_ste.estimators import Acos, Gauss, Tanh, Tent
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.gradient_update import mirrored
from qat_ste.fake_quant.flat_layout import FlatTensor, split_into_chunks
from qat_ste.optimizers import KerasSGD, SignSGD
from tests.arguments import WEIGHTS
from tests.experiment.swinging import errors
from tests.experiment.tiny import ADAM, SGD, batches, network, run

SHORT_ADAM = partial(torch.optim.Adam, betas=(0.9, 0.95), eps=1e-12)


@pytest.mark.parametrize(("estimator", "saturation"), [
    (Tanh(5.5), "range"), (Tanh(9), "bin"), (Gauss(), "none"), (Tent(), "range"), (Acos(), "bin"),
])  # fmt: skip
def test_what_decays_instead_is_the_reference_decay_seen_through_the_map(estimator, saturation):
    """M(w - εw) = M(w) - α·ε·D(M(w)) + O(ε²), also where g is 0: of the map alone, without M⁻¹ or g."""
    quantizer, share = UniformQuantizer(2, 0.2, saturation), 1e-7
    pair = SteEquivalent(estimator, quantizer)
    w = torch.linspace(-0.3, 0.3, 20_001, dtype=torch.float64)
    v, after = pair.weight_map(w), pair.weight_map(w * (1 - share))
    found, _ = mirrored(
        v, split_into_chunks([FlatTensor("weight", 0, len(v), quantizer)], 0, len(v)), pair, remapped=True
    )
    slope = (v - after) / (pair.lr_factor * share)
    smooth = (quantizer.alive(w) == quantizer.alive(w * (1 - share))) & (quantizer.alive(w) == quantizer.alive(v))
    assert smooth.float().mean() > 0.99
    torch.testing.assert_close(found[smooth], slope[smooth], rtol=2e-4, atol=1e-7)
    assert (found - v).abs().max() > 0.03, "negative control: it is not v itself"


@pytest.mark.slow
@pytest.mark.parametrize("decay", [{"l2": 0.5}, {"weight_decay": 1.0}], ids=["l2", "decoupled"])
def test_sgd_follows_only_the_mirrored_decay_as_the_learning_rate_falls(decay):
    large, small = (errors(torch.optim.SGD, 1 / steps, steps, **decay) for steps in (100, 800))
    assert small["mirrored"] < large["mirrored"] / 6
    assert small["ste"] > 0.9 * large["ste"], "negative control: with a plain decay there is an error floor"
    assert small["mirrored"] < small["ste"] / 50


@pytest.mark.slow
@pytest.mark.parametrize("decay", [{"l2": 0.5}, {"weight_decay": 10.0}], ids=["l2", "decoupled"])
def test_with_momentum_too(decay):
    """Which multiplies the learning rate of gradients by 10, of a decay beside them by nothing."""
    found = errors(partial(KerasSGD, momentum=0.9, nesterov=True), 0.1 / 1000, 1000, **decay)
    assert found["mirrored"] < found["ste"] / 3


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"weight_decay": 1.0}], ids=["l2", "both"])
def test_adam_follows_a_mirrored_penalty(more):
    found = errors(SHORT_ADAM, 0.4 / 1500, 1500, l2=1.0, **more)
    assert found["mirrored"] < 0.03
    assert found["mirrored"] < found["ste"] / 2, "negative control: v/g(v), not v"


@pytest.mark.slow
def test_adam_needs_nothing_for_a_decay_beside_the_gradient():
    beside = errors(SHORT_ADAM, 0.4 / 1500, 1500, weight_decay=1.0)
    assert beside["ste"] == beside["mirrored"] < 0.03


def test_signs_are_those_of_the_reference_with_a_mirrored_penalty():
    found = errors(SignSGD, 1e-3, 200, l2=2.0)
    assert found["mirrored"] < 1e-6 < 0.1 < found["ste"]


def test_without_a_decay_to_mirror_it_is_the_same_run_as_ste():
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    l2, beside = Training(l2=0.1), Training(weight_decay=0.1)
    members = [
        len(Cohort(model, Tanh(5.5), optimizer, 0.01, ["ste", "mirrored"], training).specs)
        for optimizer in (SGD, ADAM, torch.optim.Adagrad) for training in (Training(), l2, beside)
    ]  # fmt: skip
    assert members == [2, 3, 3, 2, 3, 2, 2, 2, 2]
    found = run(counterparts=["ste", "mirrored"], lr=0.003, steps=5)
    assert vars(found.counterparts["ste"]) == vars(found.counterparts["mirrored"])


def test_unquantized_tensors_decay_as_they_are():
    """Of a step without gradients nothing but the decay is left."""
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    training = Training(l2=0.2, weight_decay=0.3)
    cohort = Cohort(model, Tanh(5.5), SGD, 0.1, ["mirrored"], training).make_members()
    reference, counterpart = cohort.local.values()
    for member in (reference, counterpart):
        before = {name: parameter.detach().clone() for name, parameter in member.model.named_parameters()}
        flat = member.weights.buffer.clone()
        member.step(*batches()[0], lambda outputs, _: 0 * outputs.sum(), 1.0)
        for name, parameter in member.model.named_parameters():
            if "original" not in name:
                torch.testing.assert_close(parameter, before[name] * (1 - 0.1 * (0.4 + 0.3)))
    instead, _ = mirrored(flat, cohort.local[0].weights.all_chunks, cohort.equivalent, remapped=True)
    shrunk = flat - cohort.lr * cohort.equivalent.lr_factor * 0.7 * instead
    torch.testing.assert_close(counterpart.weights.buffer, shrunk, rtol=1e-4, atol=1e-6)


def test_decoupled_decay_is_adamws():
    def plain():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16, 4)).double()

    data = [(inputs.double(), targets) for inputs, targets in batches()]
    adam, adamw = (partial(make, betas=(0.9, 0.95), weight_decay=decay)
                   for make, decay in ((torch.optim.Adam, 0), (torch.optim.AdamW, 0.5)))  # fmt: skip
    theirs, mine, without = (
        run(build_model=plain, batches=data, validation=None, steps=10, lr=0.01, counterparts=["replica"], **made)
        .models["reference"].state_dict()
        for made in ({"optimizer": adamw}, {"optimizer": adam, "weight_decay": 0.5}, {"optimizer": adam})
    )  # fmt: skip
    for name, parameter in theirs.items():
        if parameter.is_floating_point():
            torch.testing.assert_close(mine[name], parameter, rtol=1e-9, atol=1e-9)
            assert not torch.allclose(without[name], parameter, rtol=1e-3), "negative control"


def test_decay_acts_on_the_chosen_tensors_alone():
    chosen = run(weight_decay=0.5, l2_include=["0.*"], steps=1, counterparts=["ste"], schedule=lambda step: 1.0)
    plain = run(steps=1, counterparts=["ste"], schedule=lambda step: 1.0)
    for name, parameter in chosen.models["reference"].named_parameters():
        assert torch.equal(parameter, plain.models["reference"].get_parameter(name)) == (not name.startswith("0.")), (
            name
        )

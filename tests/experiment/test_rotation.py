"""Training with weights that are rotated before they are quantized."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import ArgumentError, Checkpoints, CheckpointSchedule, Quantization, quantize_weights
from qat_ste.estimators import Tanh
from qat_ste.estimators.annealed import Annealed
from qat_ste.experiment.lockstep import Stopped
from tests.experiment.tiny import ADAM, SGD, batches, run

ROTATED = {"include": [nn.Linear], "rotation": 4, "scale": 0.4, "counterparts": ["ste", "naive", "jitter", "replica"]}


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))


def errors(**changes) -> dict[str, float]:
    counterparts = run(build_model=network, **(ROTATED | changes)).counterparts
    return {name: result.weight_alignment_error for name, result in counterparts.items()}


def test_the_reference_is_trained_as_autograd_trains_it():
    """Against a plain loop over a quantized model whose gradients autograd computes."""
    torch.manual_seed(5)
    start = network().double()
    model = copy.deepcopy(start)
    quantization = Quantization(include=["Linear"], rotation=4, scale=0.4)
    quantize_weights(model, quantization, Tanh(5.5))
    optimizer = SGD(model.parameters(), lr=0.05)
    double = [(inputs.double(), targets) for inputs, targets in batches()]
    for inputs, targets in double * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    comparison = run(
        build_model=lambda: copy.deepcopy(start), batches=double, validation=None, steps=10, schedule="constant",
        warmup=0.0, **ROTATED,
    )  # fmt: skip
    trained = comparison.models["reference"].state_dict()
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            assert torch.allclose(trained[name], values, atol=1e-9), name
    assert comparison.counterparts["replica"].weight_alignment_error == 0


def test_sgd_follows_in_rotated_coordinates_and_adam_does_not():
    high, low = (errors(optimizer=torch.optim.SGD, lr=0.5 / k, steps=40 * k) for k in (1, 5))
    assert low["ste"] < high["ste"] / 2
    assert low["naive"] > 2 * low["ste"]
    comparison = run(build_model=network, **(ROTATED | {"optimizer": ADAM, "lr": 1e-3}))
    assert comparison.equivalence == "none"
    assert comparison.equivalence_reason.startswith("the rotation mixes the gradients of weights")
    assert (
        run(build_model=network, **(ROTATED | {"optimizer": ADAM, "lr": 1e-3, "rotation": None})).equivalence == "keep"
    )


def test_a_moving_scale_follows_rotated_weights():
    comparison = run(build_model=network, **(ROTATED | {"scale": "absmax", "steps": 10}))
    model = comparison.models["reference"]
    fake_quantize = model[1].parametrizations.weight[0]
    latent = model[1].parametrizations.weight.original
    largest = fake_quantize.rounded(latent.detach()).abs().max()
    assert float(fake_quantize.quantizer.max) == pytest.approx(float(largest), rel=1e-6)
    assert float(largest) != pytest.approx(float(latent.detach().abs().max()), rel=1e-3)


def test_a_continued_run_is_the_same_bit_for_bit(tmp_path):
    whole = run(build_model=network, **ROTATED)
    steps = iter([False] * 16 + [True])
    checkpoints = {"schedule": CheckpointSchedule(every_steps=5)}
    with pytest.raises(Stopped):
        run(build_model=network, **ROTATED, checkpoints=Checkpoints(tmp_path, **checkpoints), stop=lambda: next(steps))
    continued = run(build_model=network, **ROTATED, checkpoints=Checkpoints(tmp_path, **checkpoints))
    assert continued.rows == whole.rows
    assert continued.counterparts == whole.counterparts


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"segment": 5}, "no segments"),
        ({"scale": "learned"}, "scales without a gradient"),
        ({"counterparts": ["mirrored"], "l2": 1e-4}, "no counterpart 'mirrored'"),
        ({"estimator": Annealed(Tanh, "k", 2.0, 4.0)}, "an estimator that stays the same"),
    ],
)
def test_what_works_weight_by_weight_is_refused(changes, allowed):
    with pytest.raises(ArgumentError, match=f"rotation must be None, or {allowed}"):
        run(build_model=network, **(ROTATED | changes))

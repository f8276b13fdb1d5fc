"""The paper's bound, added up step by step, beside the error that is measured."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from qat_ste import Checkpoints, SteEquivalent
from qat_ste.estimators import Box, Tanh
from qat_ste.experiment.lockstep import Stopped
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from tests.arguments import WEIGHTS
from tests.experiment.tiny import ADAM, SGD, batches, network, run

BOUND, ERROR, AGREEMENT = (
    f"ste/{key}" for key in ("weight_alignment_error_bound", "weight_alignment_error", "quantized_weight_agreement")
)
PLAIN = {"optimizer": torch.optim.SGD, "build_model": partial(network, dropout=0.0), "schedule": lambda step: 1.0}


def test_the_first_step_is_the_formula():
    """½·α·(L'·L₊²/L₋²)/Δ·η²·G² summed over the weights, G the gradient at the quantized weights by plain autograd."""
    lr, found = 0.01, run(steps=1, lr=0.01, **PLAIN)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = quantize_weights(network(0.0), WEIGHTS, Tanh(5.5))
    pair = None
    total = path = 0.0
    inputs, targets = batches()[0]
    plain = network(0.0)
    for (_, latent, fake_quantize), layer in zip(quantized_tensors(model), (plain[0], plain[5]), strict=True):
        layer.weight.data = fake_quantize.quantizer(latent.detach())
        layer.bias.data = model[0].bias.detach().clone() if layer is plain[0] else model[5].bias.detach().clone()
    F.cross_entropy(plain(inputs), targets).backward()
    for (_, latent, fake_quantize), layer in zip(quantized_tensors(model), (plain[0], plain[5]), strict=True):
        quantizer = fake_quantize.quantizer
        pair = SteEquivalent(Tanh(5.5), quantizer)
        known = pair.assumptions
        curvature = known.lipschitz / quantizer.step * known.upper**2 / known.lower**2
        for w, gradient in zip(latent.flatten().tolist(), layer.weight.grad.flatten().tolist(), strict=True):
            if abs(w) <= quantizer.max:
                total += 0.5 * pair.lr_factor * curvature * lr**2 * gradient**2 / quantizer.max
                path += pair.lr_factor * lr * abs(gradient) / quantizer.max
    assert found.rows[-2][BOUND] == pytest.approx(total / path, rel=1e-4)


def test_the_error_stays_below_the_bound_and_the_naive_one_does_not():
    found = run(steps=60, lr=1e-3, every=1, counterparts=["ste", "naive"], **PLAIN)
    rows = [row for row in found.rows if BOUND in row]
    assert len(rows) == 60
    agreed = [row for row in rows if all(before[AGREEMENT] == 1 for before in rows[: rows.index(row) + 1])]
    assert len(agreed) >= 5
    for row in rows:
        assert 0 < row[ERROR] <= row[BOUND]
    assert all(row["naive/weight_alignment_error"] > row[BOUND] for row in agreed)
    assert "naive/weight_alignment_error_bound" not in rows[0]
    assert found.counterparts["ste"].more["weight_alignment_error_bound"] == rows[-1][BOUND]


def test_while_the_levels_agree_the_bound_is_of_first_order_in_the_learning_rate():
    """Per step of second order; over as long a way in as many more steps, of first."""
    large, small = (run(steps=steps, lr=lr, **PLAIN) for lr, steps in ((1e-4, 4), (2e-5, 20)))
    for found in (large, small):
        assert found.counterparts["ste"].quantized_weight_agreement == 1
    values = [found.counterparts["ste"].more["weight_alignment_error_bound"] for found in (large, small)]
    assert values[0] / values[1] == pytest.approx(5, rel=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": SGD},
        {"optimizer": ADAM, "lr": 0.001},
        {"optimizer": partial(torch.optim.SGD, weight_decay=1e-3)},
        {"optimizer": torch.optim.SGD, "l2": 1e-3},
        {"optimizer": torch.optim.SGD, "estimator": Box(1.5)},
    ],
    ids=["momentum", "adam", "weight decay", "penalty", "jump"],
)
def test_what_the_bound_does_not_speak_of_has_none(changes):
    found = run(steps=4, **changes)
    assert not any(BOUND in row for row in found.rows)


def test_an_interrupted_run_has_the_same_bound(tmp_path):
    undisturbed = run(steps=20, every=5, **PLAIN)
    made = []

    def stop() -> bool:
        made.append(1)
        return len(made) == 11

    with pytest.raises(Stopped):
        run(steps=20, every=5, stop=stop, checkpoints=Checkpoints(tmp_path, {}), **PLAIN)
    again = run(steps=20, every=5, checkpoints=Checkpoints(tmp_path, {}), **PLAIN)
    assert again.rows == undisturbed.rows

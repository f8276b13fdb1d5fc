"""Comparisons with scales taken from the initial weights."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from qat_ste import Quantization
from qat_ste.estimators import ApproxSign, Ste, Tanh
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Stopped
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors, remove_quantizers
from qat_ste.quantizers.quantizer import UniformQuantizer
from qat_ste.quantizers.scales import LearnedScale
from tests.experiment.tiny import ADAM, network, run


@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
@pytest.mark.parametrize("scale", ["initial_absmax", "initial_percentile_95", "initial_mse", 0.4])
def test_the_counterpart_starts_on_the_levels_of_the_reference(scale, granularity):
    found = run(scale=scale, granularity=granularity, include=["Conv2d"], lr=0.002, steps=20,
                counterparts=["ste", "naive", "replica"])  # fmt: skip
    assert found.counterparts["ste"].initial_quantized_agreement == 1
    assert found.counterparts["ste"].initial_alignment_error == 0
    assert found.counterparts["replica"].weight_alignment_error == 0
    assert 0 < found.counterparts["ste"].weight_alignment_error < found.counterparts["naive"].weight_alignment_error


def scaled_network():
    """Weights up to twice the range of He, which is half of them."""
    model = network()
    with torch.no_grad():
        model[0].weight.uniform_(-1, 1).mul_(2 * (6 / 9) ** 0.5)
    return model


def test_many_weights_outside_the_range_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        run(build_model=scaled_network, steps=1)
    (warning,) = [record.getMessage() for record in caplog.records if "outside the range" in record.getMessage()]
    assert re.match(r"\d+ % of the quantized weights", warning)
    assert "most in 0.weight" in warning and "scale=initial_absmax" in warning


def test_weights_inside_the_range_are_not(caplog):
    with caplog.at_level(logging.WARNING):
        run(steps=1)
        run(build_model=scaled_network, scale="initial_absmax", steps=1)
    assert not [record for record in caplog.records if "outside the range" in record.getMessage()]


def test_a_scale_that_does_not_suit_a_tensor_names_it():
    with pytest.raises(ValueError, match=r"granularity must be .*divisor of 9.* \(0.weight\), got 4"):
        run(scale="initial_absmax", granularity=4)
    with pytest.raises(ValueError, match=r"scale .*zeros alone \(0.weight\)"):
        run(scale="initial_absmax", build_model=lambda: nn.Sequential(_zeros(network()[0]), *network()[1:]))


def _zeros(module):
    nn.init.zeros_(module.weight)
    return module


WITHOUT_FACTOR = LearnedScale(initial="absmax", lsq_factor=False)
MOVING = ["absmax", "absmax_gradient", "rms_2.5", "msamp_power", "mx_power", "learned"]


@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
@pytest.mark.parametrize("scale", MOVING)
def test_scales_that_move_are_each_members_own(scale, granularity):
    members = ["ste", "mirrored", "naive", "replica"]
    arguments = {"scale": scale, "granularity": granularity, "include": ["Conv2d"], "lr": 0.002, "steps": 20}
    found = run(**arguments, counterparts=members)
    assert found.counterparts["replica"].weight_alignment_error == 0
    assert found.counterparts["mirrored"].initial_quantized_agreement == 1
    if scale != "rms_2.5":
        assert found.counterparts["ste"].initial_quantized_agreement == 1
    else:
        assert found.counterparts["ste"].initial_quantized_agreement < 1, "M changes the mean square"
    alone = run(**arguments, counterparts=["ste"])
    assert alone.counterparts["ste"] == found.counterparts["ste"], "no member changes another one's scale"


@pytest.mark.parametrize(
    "scale",
    [
        LearnedScale(),
        *(pytest.param(scale, marks=pytest.mark.slow) for scale in ("absmax", "absmax_gradient", WITHOUT_FACTOR)),
    ],
)
def test_mirrored_mends_what_a_moving_scale_does_to_sgd(scale):
    """The published adjustment does not get better with the learning rate; that of the reference's scale does."""
    errors = {}
    for lr, steps in ((0.01, 40), (0.002, 200)):
        found = run(build_model=lambda: network(0.0), scale=scale, include=["Conv2d"], lr=lr, steps=steps,
                    optimizer=torch.optim.SGD, counterparts=["ste", "mirrored", "naive"])  # fmt: skip
        errors[lr] = {name: result.weight_alignment_error for name, result in found.counterparts.items()}
    fallen = {name: errors[0.01][name] / errors[0.002][name] for name in errors[0.01]}
    assert fallen["ste"] < 1.3 and fallen["naive"] < 1.3
    assert fallen["mirrored"] > 3
    assert errors[0.002]["mirrored"] < 0.05 * errors[0.002]["ste"]


def test_where_the_scale_does_not_move_mirrored_is_ste():
    found = run(scale="msamp_power", include=["Conv2d"], lr=1e-4, steps=5, counterparts=["ste", "mirrored"])
    assert found.counterparts["ste"] == found.counterparts["mirrored"]


def test_under_adam_a_computed_scale_needs_nothing():
    found = run(scale="absmax", include=["Conv2d"], optimizer=ADAM, lr=1e-3, counterparts=["ste", "mirrored", "naive"])
    assert found.counterparts["ste"] == found.counterparts["mirrored"] == found.counterparts["naive"]


@pytest.mark.parametrize("scale", ["absmax", "rms_2.5", "learned"])
@pytest.mark.parametrize("segment", [None, 4])
def test_a_stopped_run_continues_bit_for_bit(scale, segment, tmp_path):
    arguments = {"scale": scale, "granularity": "channel", "include": ["Conv2d"], "lr": 0.002, "steps": 24,
                 "segment": segment, "counterparts": ["ste", "mirrored", "naive"]}  # fmt: skip
    whole = run(**arguments)
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        run(**arguments, checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked) >= 10)
    again = run(**arguments, checkpoints=Checkpoints(tmp_path))
    assert again.rows == whole.rows
    assert again.counterparts == whole.counterparts
    assert again.segments == whole.segments


def test_models_come_back_with_the_scales_of_their_last_weights():
    found = run(scale="absmax", granularity="channel", include=["Conv2d"], lr=0.02, steps=20)
    for model in found.models.values():
        (_, latent, fake_quantize), *_ = quantized_tensors(model)
        torch.testing.assert_close(fake_quantize.quantizer.max.flatten(), latent.detach().abs().amax((1, 2, 3)))
        levels = model[0].weight.detach().clone()
        plain = remove_quantizers(model)
        assert plain[0].weight.equal(levels)


class Tied(nn.Module):
    """Two layers that share their weights, which makes two quantizers of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)).relu()).relu())


def test_modules_that_share_their_weights_share_the_scale():
    model = run(build_model=Tied, include=["first", "second"], scale="absmax").models["reference"]
    (_, w, first), (_, w_again, second) = quantized_tensors(model)
    assert w is w_again
    assert first.quantizer.max == second.quantizer.max == w.detach().abs().max()
    assert torch.equal(model.first.weight, model.second.weight)


def test_an_estimator_that_moves_the_ends_of_the_range_is_not_adjusted():
    found = run(scale="absmax", include=["Conv2d"], estimator=ApproxSign(), bits=1, steps=3)
    assert found.equivalence == "none" and "outermost levels" in found.equivalence_reason
    assert run(include=["Conv2d"], estimator=ApproxSign(), bits=1, steps=3).equivalence == "remap"


def test_the_verdict_says_that_a_moving_scale_breaks_the_adjustment():
    found = run(scale="rms_2.5", include=["Conv2d"], lr=0.002, steps=60, counterparts=["ste", "naive", "jitter"])
    assert "A scale that moves (quantizer.scale=rms) breaks the equivalence" in found.verdict.statement
    assert "mirrored" in found.verdict.statement
    fixed = run(scale="initial_absmax", include=["Conv2d"], lr=0.002, steps=60, counterparts=["ste", "naive", "jitter"])
    assert "breaks" not in fixed.verdict.statement


@pytest.mark.parametrize("scale", ["absmax_gradient", WITHOUT_FACTOR])
def test_under_adam_a_scale_with_a_gradient_has_to_be_mirrored(scale):
    found = run(build_model=lambda: network(0.0), scale=scale, include=["Conv2d"], optimizer=ADAM, lr=1e-3,
                counterparts=["ste", "mirrored", "jitter"])  # fmt: skip
    errors = {name: result.weight_alignment_error for name, result in found.counterparts.items()}
    assert errors["mirrored"] < 0.2 * errors["ste"], errors
    assert (
        f"A scale that moves (quantizer.scale={getattr(scale, 'name', scale)}) breaks the equivalence"
        in found.verdict.statement
    )


class Rounded(torch.autograd.Function):
    """Forward: the level of x = w/s, in units of s. Backward: g(x)."""

    @staticmethod
    def forward(ctx, x, quantizer, g):
        ctx.save_for_backward(g)
        return quantizer(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def estimated(scale, granularity, estimator, larger=1):
    """The weights of a layer in float64 after ``estimate``, and the gradient G that they had at quantized weights."""
    torch.manual_seed(0)
    quantization = Quantization(scale=scale, granularity=granularity, include=["Conv2d"])
    model = quantize_weights(nn.Sequential(nn.Conv2d(1, 4, 3)).double(), quantization, estimator)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(larger)
    cohort = Cohort(model, estimator, torch.optim.SGD, 0.1, ["naive"]).make_members()
    weights = cohort.local[0].weights
    gradient = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    weights.parameters[0].grad = gradient.clone()
    with weights.quantized():
        pass
    weights.estimate()
    return weights, gradient


@pytest.mark.parametrize("with_g", [True, False])
@pytest.mark.parametrize("estimator", [Tanh(5.5), Ste()])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
def test_the_gradient_of_a_learned_scale_is_that_of_autograd(granularity, estimator, with_g):
    weights, gradient = estimated(LearnedScale(with_g=with_g), granularity, estimator, larger=2)  # some saturate

    latent = weights.parameters[0].detach().clone()
    unit = UniformQuantizer(2, 1.0)
    size = {"tensor": 36, "channel": 9}.get(granularity, granularity)
    s = weights.scales.values[0].detach().clone().requires_grad_()
    x = latent.view(-1, size) / s[:, None]
    g = estimator.derivative(x.detach(), unit) if with_g else unit.gradient_mask(x.detach())
    (Rounded.apply(x, unit, g) * s[:, None] * gradient.view(-1, size)).sum().backward()
    assert unit.saturated(x.detach()).any() and not unit.saturated(x.detach()).all()
    torch.testing.assert_close(weights.scales.values[0].grad, s.grad * 1.5**1.5 / size**0.5, rtol=1e-9, atol=0)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
def test_the_largest_weight_gets_the_gradient_of_its_scale(granularity):
    weights, gradient = estimated("absmax_gradient", granularity, Tanh(5.5))

    unit, size = UniformQuantizer(2, 1.0), {"tensor": 36, "channel": 9}.get(granularity, granularity)
    latent = weights.parameters[0].detach().clone().requires_grad_()
    rows = latent.view(-1, size)
    s = rows.abs().amax(1, keepdim=True)
    x = rows / s
    g = Tanh(5.5).derivative(x.detach(), unit)
    (Rounded.apply(x, unit, g) * s * gradient.view(-1, size)).sum().backward()
    torch.testing.assert_close(weights.parameters[0].grad, latent.grad, rtol=1e-9, atol=1e-12)


def test_the_rate_of_a_learned_scale_is_its_own():
    """The counterpart's weights train at α·η, its scales at η times their factor."""
    model = quantize_weights(network(), Quantization(scale=LearnedScale(lr=0.3), include=["Conv2d"]), Tanh(5.5))
    cohort = Cohort(model, Tanh(5.5), torch.optim.SGD, 0.1, ["ste"]).make_members()
    assert cohort.local[0].lrs == pytest.approx([0.1, 0.1, 0.03])
    assert cohort.local[1].lrs == pytest.approx([0.1 * cohort.equivalent.lr_factor, 0.1, 0.03])


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"name": "learned", "lr": 0}, "learned with lr a positive finite number"),
        ({"name": "learned", "rate": 1}, "without rate: learned has initial, lr, lsq_factor, with_g"),
        ({"name": "absmax"}, "scale must be a number from"),
    ],
)
def test_wrong_arguments_of_a_learned_scale(scale, message):
    with pytest.raises(ValueError, match=message):
        run(scale=scale, steps=1)

"""The float network that a comparison starts from: trained once, kept, resumed; and what is told of it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import ArgumentError, Training, compare, estimators, pretrain
from qat_ste.experiment.lockstep import Stopped
from qat_ste.experiment.start import Start
from tests.experiment.tiny import ADAM, SGD, batches, network, run

SEEDED = Training(seed=3)


def start(steps: int = 12, **changes):
    arguments = {"loss": F.cross_entropy, "optimizer": SGD, "lr": 0.05, "training": SEEDED} | changes
    data = arguments.pop("batches", batches())
    return pretrain(arguments.pop("build_model", network), data, steps, **arguments)


def weights(build_model) -> dict[str, torch.Tensor]:
    return build_model().state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_float_network_is_trained_as_a_plain_loop_trains_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    built = start(10, build_model=partial(_same, model), training=Training(schedule="constant", warmup=0, l2=1e-3))
    optimizer = SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches() * 2:
        optimizer.zero_grad()
        (F.cross_entropy(model(inputs), targets) + 1e-3 * sum(w.square().sum() for w in model.parameters())).backward()
        optimizer.step()
    trained = weights(built)
    for name, values in model.state_dict().items():
        assert torch.allclose(trained[name], values, atol=1e-6)
    assert not torch.allclose(trained["1.weight"], weights(partial(_same, nn.Linear(36, 4)))["weight"], atol=1e-2)


def _same(model: nn.Module) -> nn.Module:
    """A copy: the loop in the test trains the original."""
    return copy.deepcopy(model)


def test_kept_weights_are_read_instead_of_trained_again(tmp_path):
    first = weights(start(folder=tmp_path))
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return F.cross_entropy(outputs, targets)

    assert same(weights(start(folder=tmp_path, loss=loss)), first)
    assert not calls
    start(13, folder=tmp_path / "other", loss=loss)  # the control: another folder is trained
    assert len(calls) == 13


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_training_continues_bit_for_bit(tmp_path, accumulate):
    training = Training(seed=3, accumulate=accumulate)
    whole = weights(start(training=training, optimizer=ADAM))
    steps = iter([False, False, False, False, True])
    with pytest.raises(Stopped):
        start(folder=tmp_path, stop=lambda: next(steps), training=training, optimizer=ADAM)
    losses = []

    def loss(outputs, targets):
        losses.append(1)
        return F.cross_entropy(outputs, targets)

    assert same(weights(start(folder=tmp_path, loss=loss, training=training, optimizer=ADAM)), whole)
    assert len(losses) == (12 - 5) * accumulate
    assert not same(weights(start(13, training=training, optimizer=ADAM)), whole)


def test_a_comparison_starts_from_the_trained_weights():
    trained, starts = start(60), []
    comparison = run(build_model=trained, on_start=starts.append, counterparts=["ste", "replica"])
    assert comparison.counterparts["replica"].weight_alignment_error == 0
    (told,) = starts
    assert comparison.start == told
    random = run(on_start=starts.append).start
    assert told.float_loss < random.float_loss


def test_what_is_told_of_the_start_is_what_a_plain_loop_computes():
    torch.manual_seed(1)
    model = network().eval()
    inputs, targets = (torch.cat(values) for values in zip(*batches(2), strict=True))
    told = []
    run(build_model=lambda: _same(model), on_start=told.append, scale=0.2, include=[nn.Conv2d])
    as_float = (model(inputs).argmax(1) == targets).double().mean().item()
    w = model[0].weight.detach()
    step = 0.4 / 3
    rounded = ((w / step).floor().clamp(-2, 1) + 0.5) * step
    model[0].weight.data = rounded
    quantized = (model(inputs).argmax(1) == targets).double().mean().item()
    assert told[0].float_accuracy == pytest.approx(as_float)
    assert told[0].quantized_accuracy == pytest.approx(quantized)
    assert told[0].outside_range == pytest.approx((w.abs() > 0.2).double().mean().item())
    assert told[0].moved_by_map > 0.01
    run(build_model=lambda: _same(model), on_start=told.append, scale=0.2, include=[nn.Conv2d], optimizer=ADAM)
    assert told[1].moved_by_map == 0  # Adam re-maps nothing


def test_the_line_about_the_start():
    line = str(Start(0.1, 0.2, 0.953, 0.9194, 0.03, 0.066))
    assert line == (
        "start: accuracy 95.3 % as float, 91.9 % quantized; 3.0 % of the weights outside the range; M moves a weight by "
        "6.6 % of it on average"
    )
    assert str(Start(0.1, 0.2, None, None, 0.0, 0.0)) == (
        "start: loss 0.1 as float, 0.2 quantized; 0.0 % of the weights outside the range"
    )


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="steps must be a whole number"):
        start(0)
    with pytest.raises(ArgumentError, match="on_start must be None without validation"):
        compare(
            network, batches(), loss=F.cross_entropy, estimator=estimators.Ste(), optimizer=SGD, lr=0.1,
            on_start=print,
        )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"the loss of the float network is not finite at step \d+"):
        start(30, lr=1e20, folder=tmp_path)

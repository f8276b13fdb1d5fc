"""Trials: what ``compare`` trains, at several learning rates at once, and on held-out data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qat_ste import ArgumentError, Execution, Quantization, Training, compare
from qat_ste.estimators import Dsq, Estimator, Tanh
from qat_ste.estimators.annealed import Annealed
from qat_ste.experiment.trials import Trial, train_trials
from tests.arguments import WEIGHTS
from tests.experiment.tiny import ADAM, SGD, batches, network

TEST, VALIDATION = batches(2), batches(3)[2:]
MOVING = replace(WEIGHTS, scale="absmax", granularity="channel")


class Raises(Estimator):
    """The STE until it is called for the 30th time."""

    calls = 0

    def shape(self, u, quantizer):
        type(self).calls += 1
        if self.calls > 30:
            raise RuntimeError("no more")
        return torch.ones_like(u)


def trained(
    trials, *, quantization=WEIGHTS, steps=40, seed=0, optimizer=SGD, build=network, loss=F.cross_entropy, device="cpu"
):
    return train_trials(
        build, batches(), trials, loss=loss, optimizer=optimizer, quantization=quantization,
        training=Training(steps=steps, seed=seed), validation=VALIDATION, test=TEST,
        execution=Execution(device=device),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "optimizer", "quantization"),
    [
        (Tanh(5.5), SGD, WEIGHTS),
        (Tanh(5.5), ADAM, MOVING),
        (Annealed(Dsq, "alpha", 0.4, 0.1, stages=4), ADAM, WEIGHTS),
        (Tanh(5.5), SGD, replace(WEIGHTS, scale="learned")),
    ],
    ids=["sgd", "moving scales", "annealed", "learned scales"],
)
def test_a_trial_is_a_run_of_compare(estimator, optimizer, quantization):
    trials = {
        "it": Trial(estimator, 0.05),
        "its STE": Trial(estimator, 0.05, adjusted=True),
        "else": Trial(Tanh(9), 0.1),
    }
    results = trained(trials, quantization=quantization, optimizer=optimizer)
    comparison = compare(
        network, batches(), loss=F.cross_entropy, estimator=estimator, optimizer=optimizer, lr=0.05,
        quantization=quantization, training=Training(steps=40, seed=0), validation=TEST, counterparts=["ste"],
    )  # fmt: skip
    for name, member in (("it", comparison.reference), ("its STE", comparison.counterparts["ste"])):
        assert (results[name].test_accuracy, results[name].test_loss) == (member.test_accuracy, member.test_loss), name
    assert results["else"].test_loss != results["it"].test_loss
    assert results["it"].validation_loss != results["it"].test_loss
    losses = [row["reference/train_loss"] for row in comparison.rows if "reference/train_loss" in row]
    assert results["it"].train_loss == pytest.approx(sum(losses[-4:]) / 4, rel=1e-6)


def test_trials_do_not_depend_on_those_beside_them():
    trials = {lr: Trial(Tanh(5.5), lr) for lr in (0.01, 0.05, 0.1)}
    together = trained(trials)
    alone = {lr: trained({lr: trial})[lr] for lr, trial in trials.items()}
    assert together == alone
    assert trained(trials, seed=1)[0.05] != together[0.05]


def test_a_trial_that_diverges_or_raises_costs_no_other():
    good, Raises.calls = Trial(Tanh(5.5), 0.05), 0
    results = trained({"good": good, "diverges": Trial(Tanh(5.5), 1e20), "raises": Trial(Raises(), 0.05)})
    assert results["good"] == trained({"good": good})["good"]
    assert results["diverges"].diverged
    assert results["diverges"].fault.startswith("the loss is ")
    assert (results["diverges"].test_loss, results["diverges"].train_loss) == (None, None)
    assert not results["raises"].diverged
    assert "no more, at step " in results["raises"].fault


def test_the_callers_generators_stay():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trained({1: Trial(Tanh(5.5), 0.05)}, steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_that_are_no_classes_have_no_accuracy():
    result = trained({1: Trial(Tanh(5.5), 0.01)}, steps=3, loss=lambda outputs, _: outputs.square().mean())[1]
    assert result.test_accuracy is not None, "the targets are classes, whatever the loss"
    data = [(images, torch.rand(len(images), 4)) for images, _ in batches()]
    result = train_trials(
        network, data, {1: Trial(Tanh(5.5), 0.01)}, loss=F.mse_loss, optimizer=SGD, quantization=WEIGHTS,
        training=Training(steps=3), validation=data, test=data,
    )[1]  # fmt: skip
    assert result.test_accuracy is None
    assert result.test_loss > 0


def test_what_cannot_be_trained_is_refused_before_training():
    with pytest.raises(ArgumentError, match="include must be"):
        trained({1: Trial(Tanh(5.5), 0.05)}, quantization=Quantization(include=["Nothing"]))
    with pytest.raises(ArgumentError, match="steps_per_epoch must be given where epochs are"):
        train_trials(
            network, iter(batches()), {1: Trial(Tanh(5.5), 0.05)}, loss=F.cross_entropy, optimizer=SGD,
            quantization=WEIGHTS, training=Training(epochs=2), validation=TEST, test=TEST,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    trials = {lr: Trial(Tanh(5.5), lr) for lr in (0.05, 1e20)}
    on_gpu, on_cpu = (trained(trials, steps=5, device=device) for device in ("cuda", "cpu"))
    assert on_gpu[0.05].test_loss == pytest.approx(on_cpu[0.05].test_loss, rel=0.05)
    assert on_gpu[1e20].diverged

"""An estimator that changes while it trains: its counterpart is re-mapped, weights and momentum, at each change."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import CheckpointSchedule, SteEquivalent, quantize_weights
from qat_ste.estimators import Dsq, Tanh
from qat_ste.estimators.annealed import Annealed
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Stopped
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.optimizers import KerasSGD
from tests.arguments import WEIGHTS as ALL_WEIGHTS
from tests.experiment.swinging import WEIGHTS, errors
from tests.experiment.tiny import ADAM, SGD, network, run

DSQ = Annealed(Dsq, "alpha", 0.6, 0.05, stages=4)


def build() -> nn.Module:
    layer = nn.Linear(WEIGHTS, 1, bias=False).double()
    nn.init.uniform_(layer.weight, -0.16, 0.16)
    return layer


@pytest.mark.parametrize(("scale", "expected"), [("log", [1, 10, 100, 1000]), ("linear", [1, 334, 667, 1000])])
def test_stages_go_from_start_to_end(scale, expected):
    stages = Annealed(Tanh, "k", 1, 1000, 4, scale).stages
    assert [stage.k for stage in stages] == pytest.approx(expected)
    assert (stages[0], stages[-1]) == (Tanh(1), Tanh(1000))


@pytest.mark.parametrize(("changes", "message"), [
    ({"stages": 1}, "stages must be a whole number of at least 2, got 1"),
    ({"scale": "cosine"}, "scale must be one of log, linear, got 'cosine'"),
    ({"start": 0}, "start must be a positive finite number, got 0"),
    ({"end": 2}, "alpha must be a number between 0 and 1"),
])  # fmt: skip
def test_what_it_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        Annealed(**{"make": Dsq, "parameter": "alpha", "start": 0.4, "end": 0.1} | changes)


OPTIMIZERS = [partial(make, momentum=0.9, nesterov=nesterov)
              for make in (torch.optim.SGD, KerasSGD) for nesterov in (False, True)]  # fmt: skip


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "control"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "sgd nesterov", "keras", "keras nesterov"])
def test_momentum_carries_both_alike_over_a_change(optimizer, scaled):
    """A step without gradient, out of momenta that agree: M of the one is the other up to η²; unscaled, up to η."""
    apart = []
    for lr in (1e-3, 1e-4):
        torch.manual_seed(0)
        cohort = Cohort(quantize_weights(build(), ALL_WEIGHTS, DSQ), DSQ, optimizer, lr, ["ste"]).make_members()
        reference, ste = cohort.local.values()
        (w,), (v,), pair = reference.weights.parameters, ste.weights.parameters, cohort.equivalent
        quantizer = cohort.tensors[0].quantizer
        momentum = torch.randn_like(v)
        keras = lr * torch.tensor([1, pair.lr_factor]) if optimizer.func is KerasSGD else torch.ones(2)
        g = DSQ.stages[0].derivative(w.detach(), quantizer)
        reference.optimizer.state[w]["momentum_buffer"] = keras[0] * g * momentum
        before = ste.optimizer.state[v]["momentum_buffer"] = keras[1] * momentum
        kept = before.clone()
        assert cohort.enter(1, 2)
        assert cohort.stage == 2
        if not scaled:
            before.copy_(kept)
        after = SteEquivalent(DSQ.stages[2], quantizer)
        assert torch.equal(quantizer(v), quantizer(w))
        torch.testing.assert_close(after.weight_map(w.detach()), v.detach(), rtol=0, atol=1e-11)
        for member in (reference, ste):
            member.step(torch.zeros(1, WEIGHTS).double(), torch.zeros(1), lambda outputs, _: outputs.sum(), 1.0)
        apart.append((after.weight_map(w.detach()) - v.detach()).abs().max().item())
    ratio = apart[0] / apart[1]
    assert ratio > 50 if scaled else ratio < 15


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, partial(KerasSGD, momentum=0.9)], ids=["plain", "momentum"])
def test_sgd_follows_ever_closer_as_the_learning_rate_falls_if_it_is_re_mapped(optimizer):
    reach = 1.0 if optimizer is torch.optim.SGD else 0.1
    of_all = {"build": build, "dtype": torch.float64, "estimator": DSQ, "counterparts": ["ste", "ste_once"]}
    large, small = (errors(optimizer, reach / steps, steps, **of_all) for steps in (100, 800))
    assert small["ste"] < large["ste"] / 5
    assert small["ste_once"] > 0.03, "negative control: M and α of the first stage alone"
    assert small["ste"] < small["ste_once"] / (30 if reach == 1 else 2)


def test_a_re_map_is_no_way_that_weights_went():
    cohort = Cohort(quantize_weights(build(), ALL_WEIGHTS, DSQ), DSQ, SGD, 0.1, ["ste"]).make_members()
    monitor = DivergenceMonitor(cohort, 1000, 0)
    before = cohort.local[1].weights.buffer.clone()
    assert cohort.enter(1, 2)
    assert not cohort.enter(1, 2)
    monitor.remapped()
    monitor.observe(1, cohort.levels())
    assert (cohort.local[1].weights.buffer - before).abs().max() > 1e-3
    assert [trajectory.path.item() for trajectory in monitor.trajectories] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("done", [10, 13])
def test_cut_off_and_continued_it_is_the_same_run(tmp_path, done):
    """At a change, which comes with step 11, and between two."""
    arguments = {
        "estimator": DSQ,
        "counterparts": ["ste", "mirrored", "ste_once", "jitter"],
        "lr": 0.003,
        "every": 5,
    }
    undisturbed = run(**arguments)
    checkpoints, seen = partial(Checkpoints, tmp_path, {}, CheckpointSchedule(every_seconds=None)), []
    with pytest.raises(Stopped, match=f"stopped after step {done}"):
        run(**arguments, checkpoints=checkpoints(), stop=lambda: bool(seen.append(1)) or len(seen) == done)
    continued = run(**arguments, checkpoints=checkpoints())
    assert continued.rows == undisturbed.rows
    for name, numbers in undisturbed.counterparts.items():
        assert vars(continued.counterparts[name]) == vars(numbers)


def test_members_where_nothing_changes_are_one():
    def members(estimator, optimizer) -> int:
        model = quantize_weights(network(), ALL_WEIGHTS, estimator)
        return len(Cohort(model, estimator, optimizer, 0.01, ["ste", "ste_once", "mirrored", "naive"]).specs)

    assert members(DSQ, SGD) == 4, "the reference, ste, ste_once and naive"
    assert members(Tanh(), SGD) == 3
    cohort = Cohort(quantize_weights(network(), ALL_WEIGHTS, DSQ), DSQ, ADAM, 0.01, ["ste", "ste_once"]).make_members()
    assert len(cohort.specs) == 2
    before = cohort.local[1].weights.buffer.clone()
    cohort.enter(1, 2)
    assert torch.equal(cohort.local[1].weights.buffer, before), "under keep nothing is re-mapped"


def test_an_optimizer_known_by_testing_alone_is_not_adjusted():
    class Own(torch.optim.SGD):
        pass

    found = run(estimator=DSQ, optimizer=partial(Own, momentum=0.9), steps=5)
    assert found.equivalence == "none"
    assert "not how its state changes with the estimator" in found.equivalence_reason
    assert run(estimator=Tanh(), optimizer=partial(Own, momentum=0.9), steps=5).equivalence == "remap"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_is_compiled_is_the_network_and_serves_every_stage():
    eager, compiled = (run(estimator=DSQ, execution=mode, lr=0.003, build_model=partial(network, 0.0))
                       for mode in ("eager", "compile"))  # fmt: skip
    assert compiled.reference.test_loss == pytest.approx(eager.reference.test_loss, rel=1e-4)

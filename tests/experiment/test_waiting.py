"""Between two rows, training and metrics never wait for a GPU."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext, suppress
from functools import partial

import pytest
import torch

from qat_ste import estimators, optimizers
from qat_ste.divergence import change_points
from qat_ste.divergence.sequences import ChangeSequences
from qat_ste.quantizers.grids import GridQuantizer
from qat_ste.quantizers.quantizer import UniformQuantizer
from tests.experiment.tiny import ADAM, batches, run
from tests.experiment.waiting import Watched, counting, like_a_gpu

STEPS, EVERY = 28, 14  # a row after the changes of 8 steps were processed together
COUNTERPARTS = ["ste", "naive", "jitter", "replica"]
SETTINGS = {
    "default": {},
    "sampled weights": {"sequence_weights": 100},
    "plain SGD, with the paper's bound": {"optimizer": partial(torch.optim.SGD, momentum=0)},
    "Adam": {"optimizer": ADAM, "lr": 1e-3},
    "KerasSGD": {"optimizer": partial(optimizers.KerasSGD, momentum=0.9)},
    "Lion": {"optimizer": optimizers.Lion, "lr": 1e-3},
    "SignSGD": {"optimizer": optimizers.SignSGD, "lr": 1e-3},
    "Muon": {"optimizer": optimizers.Muon},
    "clipping and decay": {"clip_norm": 0.1, "l2": 1e-4, "weight_decay": 1e-4},
    "clipping at quantized weights": {"clip_norm": 0.1, "clip_at": "quantized"},
    "parts of batches": {"accumulate": 4},
    "bf16": {"precision": "bf16"},
    "grid": {"levels": "nf4"},
    "formula": {"estimator": estimators.Formula("1 + 0.5*cos(2*pi*u)")},
    "formula in w": {"estimator": estimators.Formula("1 + 0.1*w"), "counterparts": ["naive", "jitter"]},
    "EWGS": {"estimator": estimators.Ewgs()},
}


@pytest.fixture(autouse=True)
def _processed_every_eight_steps(monkeypatch):
    monkeypatch.setattr("qat_ste.divergence.trajectory.MAX_PENDING_STEPS", 8)


def watched(**changes):
    data = Watched(batches(), 1, EVERY - 2)
    arguments = {"batches": data, "steps": STEPS, "every": EVERY, "validation": None, "counterparts": COUNTERPARTS}
    return run(**arguments | changes), data.seen


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_waits_between_rows(setting, monkeypatch):
    ages = like_a_gpu(monkeypatch)
    _, seen = watched(**SETTINGS[setting])
    assert not seen
    assert ages and min(ages[: EVERY - 3]) >= 2, "counts are read two steps after they were made"


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["default", "sampled weights", "grid"])
def test_a_gpu_gets_the_numbers_of_a_cpu(setting, monkeypatch):
    at_once, _ = watched(**SETTINGS[setting])
    like_a_gpu(monkeypatch)
    later, _ = watched(**SETTINGS[setting])
    assert later.rows == at_once.rows
    assert later.counterparts == at_once.counterparts


def test_larger_groups_of_chunks_as_on_a_gpu_change_the_rounding_alone(monkeypatch):
    monkeypatch.setattr("qat_ste.fake_quant.flat_layout.CHUNK_WEIGHTS", 100)
    small, _ = watched()
    monkeypatch.setattr("qat_ste.fake_quant.flat_layout.most_weights", lambda device: 1 << 22)
    large, _ = watched()
    for name, numbers in small.counterparts.items():
        for key, value in vars(numbers).items():
            if isinstance(value, float):
                assert getattr(large.counterparts[name], key) == pytest.approx(value, rel=1e-6, abs=1e-12), key


def test_many_changes_are_compressed_between_rows_without_waiting(monkeypatch):
    at_once, _ = watched(lr=0.5)
    monkeypatch.setattr(ChangeSequences, "LIMIT", 50)
    monkeypatch.setattr("qat_ste.divergence.trajectory.MAX_PENDING_CHANGES", 20)
    ages = like_a_gpu(monkeypatch)
    later, seen = watched(lr=0.5)
    assert not seen
    assert later.counterparts == at_once.counterparts
    assert min(ages[: EVERY - 3]) >= 1


def test_waiting_is_seen(monkeypatch):
    """As on a CPU, where changes are located at once; and in a metric that reads a number."""
    _, seen = watched()
    assert seen["nonzero"]
    like_a_gpu(monkeypatch)
    changed = change_points.AverageChangePointError.changed

    def reading(self, reference, counterpart):
        self._sum.max().item()
        changed(self, reference, counterpart)

    monkeypatch.setattr(change_points.AverageChangePointError, "changed", reading)
    _, seen = watched()
    assert seen == {"item": 4, "_local_scalar_dense": 4}, "once per counterpart"


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(), lambda x: x[x > 1], lambda x: x.cpu(), lambda x: bool(x[0]), lambda x: x.unique_consecutive(),
        lambda x: x.to("cpu"), lambda x: x.new_tensor([1, 2]), lambda x: x.repeat_interleave(x), lambda x: x.numpy(),
        lambda x: x.masked_select(x > 1), lambda x: torch.equal(x, x), lambda x: x.__setitem__(x > 1, x[0]),
    ],
)  # fmt: skip
def test_each_kind_of_wait_is_seen(wait):
    seen, x = Counter(), torch.arange(4)
    with counting(seen):
        wait(x)
    assert seen


def estimators_on_grids():
    for name in sorted(set(estimators.__all__) - {"Estimator"}):
        for quantizer in (UniformQuantizer(1, 0.5), UniformQuantizer(2, 0.5), GridQuantizer("nf4", 0.5)):
            estimator = getattr(estimators, name)()
            with suppress(ValueError):  # it is for two levels alone
                estimator.check(quantizer)
                yield pytest.param(estimator, quantizer, id=f"{name}, {quantizer.num_levels} levels")


@pytest.mark.parametrize(("estimator", "quantizer"), list(estimators_on_grids()))
def test_estimators_do_not_wait(estimator, quantizer):
    w, seen = torch.linspace(-1, 1, 101), Counter()
    for watching in (nullcontext(), counting(seen)):  # at first, tensors may be made that are kept
        with watching:
            estimator.stages[0].backward(torch.ones_like(w), w, quantizer)
    assert not seen

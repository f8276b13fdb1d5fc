"""Many estimators trained together: each cell is what ``compare`` finds for that estimator by itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from qat_ste.estimators import Cosine, Estimator, StableQat, Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.many_estimators import train_cells
from qat_ste.optimizers import SignSGD
from tests.arguments import sorted_arguments
from tests.experiment.tiny import ADAM, SGD, batches, network, run

ESTIMATORS = {"tanh": Tanh(5.5), "stable": StableQat(0.21), "sine": Cosine(a=1.0)}


def cells(**changes):
    arguments = {
        "loss": F.cross_entropy, "bits": 2, "estimators": ESTIMATORS, "optimizer": SGD, "lr": 0.01, "steps": 20,
        "test": batches(2),
    }  # fmt: skip
    found = sorted_arguments(arguments | changes)
    return train_cells(
        network, batches(), **{name: found[name] for name in found if name not in ("metrics", "execution")}
    )


@pytest.mark.parametrize(
    "optimizer", [SGD, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (ADAM, torch.optim.Adagrad, SignSGD))]
)
def test_a_cell_is_what_compare_finds(optimizer):
    """Dropout and batch norm included; 20 runs through 5 batches."""
    found = cells(optimizer=optimizer, seed=3)
    for name in ("tanh", "stable"):
        alone = run(estimator=ESTIMATORS[name], optimizer=optimizer, lr=0.01, steps=20, seed=3)
        cell = found[name]
        for counterpart in ("ste", "naive", "jitter"):
            assert getattr(cell, counterpart) == alone.counterparts[counterpart].weight_alignment_error
        assert cell.equivalent_lr_jitter == alone.verdict.equivalent_lr_jitter
        assert (cell.lr_factor, cell.equivalence) == (alone.lr_factor, alone.equivalence)
        assert cell.test_accuracy == alone.reference.test_accuracy
        assert cell.moved_fraction == alone.reference.moved_fraction
        assert cell.saturated_fraction == alone.reference.saturated_fraction
    assert cells(optimizer=optimizer, seed=4)["tanh"].jitter != found["tanh"].jitter


@pytest.mark.parametrize("optimizer", [SGD, pytest.param(ADAM, marks=pytest.mark.slow)])
def test_a_cell_has_the_segments_that_compare_finds(optimizer):
    plain, segmented = (cells(optimizer=optimizer, seed=3, segment=segment) for segment in (None, 2))
    for name in ("tanh", "stable"):
        alone = run(estimator=ESTIMATORS[name], optimizer=optimizer, lr=0.01, steps=20, seed=3, segment=2)
        verdict = alone.segments.verdicts[2]
        assert segmented[name].segment_outcome == verdict.outcome
        assert segmented[name].segment_ste_over_jitter == pytest.approx(verdict.ste_over_jitter.value)
        assert segmented[name].segment_ste_over_jitter_high == pytest.approx(verdict.ste_over_jitter.high)
        assert segmented[name].ste == plain[name].ste, "the whole run is left alone"
        assert plain[name].segment_outcome is None
    assert segmented["tanh"] != segmented["stable"]


@pytest.mark.parametrize(("optimizer", "runs"), [(SGD, 3 * 2 + 2 + 1), (ADAM, 3 * 2 + 1)])
def test_each_run_is_trained_once(optimizer, runs, monkeypatch):
    made = []
    member = Cohort.member
    monkeypatch.setattr(Cohort, "member", lambda self, spec: made.append(spec) or member(self, spec))
    cells(optimizer=optimizer, steps=1)
    assert len(made) == runs


def test_equal_learning_rates_from_other_weights_are_other_runs():
    """±a have the same α but not the same M."""
    pair = {"peak": Cosine(a=0.5), "dip": Cosine(a=-0.5)}
    together = cells(estimators=pair)
    assert together["peak"].lr_factor == pytest.approx(together["dip"].lr_factor)
    for name, estimator in pair.items():
        assert together[name] == cells(estimators={name: estimator})[name]


def test_sign_sgd_is_exactly_zero_and_its_jitter_is_not():
    found = cells(optimizer=SignSGD)
    assert [found[name].ste for name in ("tanh", "stable")] == [0, 0]
    assert all(cell.jitter > 0 for cell in found.values())


def test_where_the_theorem_cannot_apply_nothing_is_adjusted_and_the_cell_says_why():
    sine = cells()["sine"]
    assert "is not positive: g = 0 at" in sine.refused
    assert (sine.ste, sine.lr_factor, sine.g_ratio) == (sine.naive, None, None)
    tanh = cells()["tanh"]
    assert tanh.refused is None
    assert tanh.ste < tanh.naive / 2
    assert tanh.g_ratio == pytest.approx(math.cosh(5.5 / 3) ** 2, rel=1e-4)


class Broken(Estimator):
    """Raises, or is not finite, after so many backward passes."""

    def __init__(self, calls: int, value: float | None) -> None:
        self.calls, self.value = calls, value

    def shape(self, u, quantizer):
        return torch.ones_like(u)

    def backward(self, gradient, w, quantizer):
        calls[0] += 1
        if calls[0] <= self.calls:
            return gradient
        if self.value is None:
            raise RuntimeError(f"call {calls[0]}\nwas too much")
        return torch.full_like(gradient, self.value)


calls = [0]


@pytest.mark.parametrize(
    ("value", "told"), [(None, "reference: RuntimeError: call "), (math.nan, "reference: the loss is ")]
)
def test_a_fault_stops_no_other_estimator(value, told):
    calls[0] = 0
    broken = Broken(4, value)
    found = cells(estimators={"broken": broken, "tanh": Tanh(5.5)})
    assert found["broken"].fault.startswith(told)
    assert "at step " in found["broken"].fault
    assert found["broken"].ste is None
    assert found["tanh"] == cells(estimators={"tanh": Tanh(5.5)})["tanh"]
    assert found["tanh"].fault is None


def test_weights_that_never_moved_have_no_error():
    assert cells(lr=1e-30, steps=1)["tanh"].ste is None

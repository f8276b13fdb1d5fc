"""Segments: orders in η without chaos, the state at their start, and what they leave alone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import Checkpoints, Metrics, Quantization, Training, compare
from qat_ste.estimators import Dsq, Tanh
from qat_ste.estimators.annealed import Annealed
from qat_ste.experiment.lockstep import Stopped
from qat_ste.experiment.segment_statistics import FEWEST, Interval, Sums, block_length, growth, ratio_interval
from qat_ste.experiment.state_transfer import StateTransfer
from qat_ste.optimizers import KerasSGD, Lion, SignSGD
from qat_ste.optimizers.state_maps import STATE_MAPS, StateKind
from tests.experiment.tiny import ADAM, SGD, batches, network, run

WEIGHTS, LENGTH, HISTORY = 100_000, 5, 20
ANNEALED = Annealed(Dsq, "alpha", 0.4, 0.1, stages=3)


class Direct(nn.Module):
    """Its gradient is its input, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WEIGHTS, 1, dtype=torch.float64) * 1.6 - 0.8)

    def forward(self, x):
        return x @ self.weight


def distances(optimizer, lr: float, length: int = LENGTH, counterparts=("ste", "naive")) -> dict[str, float]:
    """Mean distance by counterpart at the end of one segment, after the same history of gradients at each rate."""
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)
    gradients = mean + torch.randn(HISTORY + length, WEIGHTS, generator=generator, dtype=torch.float64)
    data = [(gradient[None], torch.zeros(1)) for gradient in gradients]
    rows = []
    compare(
        Direct, data, loss=lambda outputs, _: outputs.sum(), estimator=Tanh(5.5), optimizer=optimizer, lr=lr,
        quantization=Quantization(bits=2, include=["Direct"], saturation="none"),
        training=Training(steps=len(data), schedule="constant", warmup=0, segment=length, seed=1),
        metrics=Metrics(every=length, sequence_weights=100), counterparts=list(counterparts), on_row=rows.append,
    )  # fmt: skip
    (last,) = (row for row in rows if row.get("segment") and row["step"] == len(data))
    names = (f"{name}@{length}" for name in counterparts)
    return {name.partition("@")[0]: (last[f"{name}/weight_alignment_error"] or 0) * last[f"{name}/path"]
            for name in names}  # fmt: skip


def orders(optimizer, lr: float, **changes) -> dict[str, float]:
    """By which power of η the distance falls."""
    large, small = (distances(optimizer, rate, **changes) for rate in (lr, lr / 2))
    return {name: math.log2(large[name] / small[name]) for name in large}


OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "momentum": SGD,
    "Nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "Keras": partial(KerasSGD, momentum=0.9),
}


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(make, id=name, marks=pytest.mark.slow if name in ("Nesterov", "Keras") else ())
     for name, make in OPTIMIZERS.items()],
)  # fmt: skip
def test_the_adjusted_ste_is_of_second_order_and_the_naive_one_of_first(optimizer):
    found = orders(optimizer, 1e-5)
    assert 1.9 <= found["ste"] <= 2.1
    assert 0.9 <= found["naive"] <= 1.1


@pytest.mark.parametrize(("kind", "optimizer"), [(torch.optim.SGD, OPTIMIZERS["momentum"]),
                                                 (KerasSGD, OPTIMIZERS["Keras"])])  # fmt: skip
def test_with_its_velocity_unmapped_the_ste_is_of_first_order(kind, optimizer, monkeypatch):
    monkeypatch.setitem(STATE_MAPS, kind, {"momentum_buffer": StateKind.STEPS})
    assert 0.9 <= orders(optimizer, 1e-5)["ste"] <= 1.1


@pytest.mark.slow
def test_adam_with_a_short_memory_is_of_an_order_above_one():
    short = partial(torch.optim.Adam, betas=(0.5, 0.5), eps=1e-30)
    assert orders(short, 1e-5)["ste"] > 1.5


def test_squares_copied_from_the_reference_would_hide_what_breaks_adam(monkeypatch):
    """A memory of 1,000 steps in which g changes: seen with each member's own squares, hidden by copied ones."""
    long = partial(torch.optim.Adam, betas=(0.9, 0.999), eps=1e-30)
    seen = distances(long, 1e-2, length=1)["ste"]
    factor = StateTransfer._factor

    def squared(self, kind, spec, w_ref, quantizer):
        return factor(self, StateKind.MEAN, spec, w_ref, quantizer) ** (2 if kind == "square" else 1)

    monkeypatch.setattr(StateTransfer, "_factor", squared)
    monkeypatch.setitem(STATE_MAPS, torch.optim.Adam, {"exp_avg": StateKind.MEAN, "exp_avg_sq": "square"})
    assert distances(long, 1e-2, length=1)["ste"] < seen / 50


@pytest.mark.slow
def test_lions_flips_are_in_proportion_to_the_rate_and_sign_descent_is_exact():
    lion = partial(Lion, betas=(0.9, 0.99))
    flips = orders(lion, 1e-2)["ste"]  # a flip is worth 2·η, so their number falls by one order less
    assert 1.8 <= flips <= 2.2
    assert distances(SignSGD, 1e-3)["ste"] == 0


def segment_rows(comparison):
    return [row for row in comparison.rows if "segment" in row]


def test_the_whole_run_is_left_alone_and_replica_is_exact():
    arguments = {"steps": 40, "steps_per_epoch": 20, "counterparts": ["ste", "naive", "jitter", "replica"]}
    plain, segmented = run(**arguments), run(**arguments, segment=[5, 20])
    assert {name: vars(each) for name, each in segmented.counterparts.items()} == {
        name: vars(each) for name, each in plain.counterparts.items()
    }
    assert plain.segments is None
    results = segmented.segments.by_length
    assert {length: results[length]["ste"].segments for length in results} == {5: 8, 20: 2}
    for of_length in results.values():
        assert of_length["replica"].weight_alignment_error is None
        assert of_length["replica"].quantized_weight_agreement == 1
        assert of_length["replica"].loss_difference == 0
        assert of_length["ste"].weight_alignment_error.value > 0
    assert [row["step"] for row in segmented.rows] == sorted(row["step"] for row in segmented.rows)


def test_a_segment_of_one_step_is_that_step_from_the_mapped_state():
    """The second, slow derivation: steps of the STE from M(w), written out for plain SGD."""
    comparison = run(optimizer=torch.optim.SGD, steps=10, segment=1, every=1, validation=None, steps_per_epoch=5,
                     build_model=partial(network, 0.0), schedule="constant", warmup=0, lr=1e-3)  # fmt: skip
    errors = [row["ste@1/weight_alignment_error"] for row in segment_rows(comparison)]
    whole = [row["ste/weight_alignment_error"] for row in comparison.rows if "ste/weight_alignment_error" in row]
    assert errors[0] == pytest.approx(whole[0], rel=1e-6), "the first segment is the first step of the whole run"
    total = comparison.segments.by_length[1]["ste"].weight_alignment_error.value
    rows = segment_rows(comparison)
    paths = [row["ste@1/path"] for row in rows]
    assert total == pytest.approx(np.dot(errors, paths) / sum(paths), rel=1e-9), "a ratio of sums"


def test_naive_under_keep_is_the_same_run_as_ste():
    results = run(optimizer=ADAM, lr=1e-3, segment=5, steps=20).segments.by_length[5]
    assert results["naive"] == results["ste"]


DISTURBED = {
    "SGD": {},
    "Adam": {"optimizer": ADAM, "lr": 1e-3},
    "Keras": {"optimizer": partial(KerasSGD, momentum=0.9)},
    "accumulation": {
        "accumulate": 2,
        "build_model": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 4)),
    },
    "decay": {"l2": 1e-3, "counterparts": ["ste", "mirrored", "jitter"]},
    "clipping": {"clip_norm": 0.5, "counterparts": ["ste", "mirrored", "jitter"]},
    "annealed": {"estimator": ANNEALED, "counterparts": ["ste", "ste_once", "naive"]},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(changes, id=name, marks=() if name in ("SGD", "annealed") else pytest.mark.slow)
     for name, changes in DISTURBED.items()],
)  # fmt: skip
def test_interrupted_and_resumed_is_undisturbed_bit_for_bit(changes, tmp_path):
    arguments = {"steps": 24, "steps_per_epoch": 6, "segment": [3, 8], "every": 4} | changes
    whole = run(**arguments)
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        run(**arguments, checkpoints=Checkpoints(tmp_path), stop=lambda: next(calls) == 13)
    resumed = run(**arguments, checkpoints=Checkpoints(tmp_path))
    assert resumed.rows == whole.rows
    assert resumed.segments == whole.segments


@pytest.mark.parametrize(("changes", "steps"), [({"optimizer": SGD}, True), ({"optimizer": torch.optim.Adagrad}, True)])
def test_an_optimizer_without_a_map_keeps_its_state_and_says_so(changes, steps):
    assert run(**changes, steps=8, segment=4).segments.state == "mapped"

    class Mine(torch.optim.SGD):
        pass

    results = run(optimizer=partial(Mine, momentum=0.9), steps=8, segment=4).segments
    assert results.state == "each member's own: no map is known for this optimizer"


@pytest.mark.parametrize("segment", [0, [], [5, 5], 2.5, [1, "a"], True])
def test_wrong_lengths_are_refused(segment):
    with pytest.raises(ValueError, match="segment must be None, a whole number of at least 1, or a list of different"):
        run(segment=segment)
    with pytest.raises(ValueError, match="segment must be shorter than the run of 40 steps"):
        run(segment=[5, 40])


def sums(n: int, rho: float, seed: int, scale: float = 0.3) -> Sums:
    """Distances around 0.1 of paths around 1, whose residuals are an AR(1) process."""
    generator = np.random.default_rng(seed)
    noise = np.zeros(n)
    for step in range(1, n):
        noise[step] = rho * noise[step - 1] + generator.normal() * math.sqrt(1 - rho**2)
    path = 1 + 0.2 * generator.random(n)
    return Sums(path * 0.1 * np.exp(scale * noise - scale**2 / 2), path)


@pytest.mark.parametrize("rho", [pytest.param(0.0, marks=pytest.mark.slow), 0.6])
def test_the_interval_covers_the_truth_as_often_as_it_says(rho):
    held = [(interval := ratio_interval(sums(100, rho, seed))).low <= 0.1 <= interval.high for seed in range(200)]
    assert sum(held) >= 180
    narrow = [abs(math.log(ratio_interval(sums(100, rho, seed)).value / 0.1)) < 0.01 for seed in range(200)]
    assert sum(narrow) < 180, "control: an interval of 1 % does not"


def test_blocks_grow_with_the_autocorrelation_and_few_segments_have_no_interval():
    assert block_length(sums(400, 0.0, 1)) <= 3
    assert block_length(sums(400, 0.8, 1)) > 10
    few = sums(FEWEST - 1, 0.0, 1)
    assert ratio_interval(few) == Interval(few.ratio)
    assert ratio_interval(few, few) == Interval(1.0)


def test_the_exponent_of_growth():
    exact = {length: Interval(0.01 * length**1.5, 0.009 * length**1.5, 0.011 * length**1.5) for length in (5, 20, 80)}
    exponent = growth(exact)
    assert exponent.value == pytest.approx(1.5)
    assert exponent.low < 1.5 < exponent.high
    assert growth({5: Interval(0.1)}) is None
    without = growth({5: Interval(0.1), 20: Interval(0.2)})
    assert (without.value, without.low) == (pytest.approx(0.5), None)


def test_the_floor_of_rounding_is_what_the_map_of_rounded_weights_makes():
    """At a tiny rate nothing but rounding is left."""
    rows = run(optimizer=torch.optim.SGD, lr=1e-7, steps=10, segment=5, validation=None, steps_per_epoch=5)
    result = rows.segments.by_length[5]["ste"]
    assert not result.decidable
    assert rows.segments.verdicts[5].outcome in ("below the floor", "undecided")
    assert 0.1 * result.floor < result.weight_alignment_error.value < 10 * result.floor


def test_batches_of_the_whole_run_are_those_of_the_segments():
    losses = []

    def loss(outputs, targets):
        losses.append(targets.clone())
        return F.cross_entropy(outputs, targets)

    run(loss=loss, steps=3, segment=2, counterparts=["ste"], validation=None)
    trained = losses[2:]  # after the checks: reference, ste, ste@2 in each step
    assert len(trained) == 9
    for step in range(3):
        assert all(torch.equal(each, batches()[step][1]) for each in trained[3 * step : 3 * step + 3])

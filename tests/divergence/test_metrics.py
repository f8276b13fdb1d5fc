from __future__ import annotations

import math

import pytest
import torch

from qat_ste import UniformQuantizer
from qat_ste.divergence import Divergence, Metric, Pair, Trajectory, sample_positions
from qat_ste.divergence.metric import ratio
from qat_ste.divergence.outputs import correlation, inference_metrics

from . import slow

WEIGHTS, STEPS = 60, 80
PARTS = {"first": slice(0, 25), "second": slice(25, 60)}


def random_walk(kind: str, generator: torch.Generator) -> torch.Tensor:
    """A recorded run, steps x weights: a drift, an oscillation about thresholds, or one that never moves."""
    noise = torch.randn(STEPS, WEIGHTS, generator=generator)
    start = torch.rand(WEIGHTS, generator=generator) * 2 - 1
    if kind == "drift":
        return start + (0.08 * noise).cumsum(0)
    if kind == "oscillation":  # a random choice of the two sides of a threshold, step by step
        return (torch.randint(-1, 2, (WEIGHTS,), generator=generator) * 2 / 3) + 0.02 * noise.sign() * (
            start.abs() > 0.2
        )
    return start.expand(STEPS, WEIGHTS) * 0.999


def observe(runs, quantizer, weight_map=None, sampled=None):
    buffers = [run[0].clone() for run in runs]
    trajectories = [Trajectory(buffer, quantizer, sampled) for buffer in buffers]
    divergence = Divergence(Pair(*trajectories, weight_map))
    for step in range(1, STEPS):
        for buffer, run, trajectory in zip(buffers, runs, trajectories, strict=True):
            buffer.copy_(run[step])
            trajectory.observe(step)
        divergence.update()
    return divergence


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [("drift", "near"), ("drift", "drift"), ("oscillation", "near"),
                                   ("oscillation", "oscillation"), ("still", "still"), ("still", "drift")])  # fmt: skip
def test_every_metric_is_what_a_slow_look_at_the_whole_record_gives(kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    first = random_walk(kinds[0], generator)
    near = first.clone()  # close to the first: some weights late by a step or two
    near[2:, ::3] = first[:-2, ::3]
    second = near if kinds[1] == "near" else random_walk(kinds[1], generator)
    max_ = torch.where(torch.arange(WEIGHTS) < 25, 1.0, 0.5).double()
    runs = [(run * max_).float() for run in (first, second)]
    quantizer = UniformQuantizer(2, max_)
    divergence = observe(runs, quantizer, weight_map=lambda w: w * 0.9)
    total, layers = divergence.results(PARTS)
    for part, found in ((slice(None), total), *((PARTS[name], values) for name, values in layers.items())):
        levels = [quantizer.index(run)[:, part].tolist() for run in runs]
        weights = [run[:, part].double().tolist() for run in runs]
        mapped = (runs[0][-1] * 0.9)[part].double().tolist()
        expected = slow.metrics(*levels, mapped, weights[1], max_[part].tolist())
        for name, value in expected.items():
            assert found[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name


def test_unmapped_error_and_quantities_over_time():
    generator = torch.Generator().manual_seed(0)
    runs = [random_walk("drift", generator) for _ in range(2)]
    divergence = observe(runs, UniformQuantizer(2, torch.ones(WEIGHTS).double()), weight_map=lambda w: w * 0.5)
    path = (runs[1][1:] - runs[1][:-1]).abs().double().sum()
    unmapped = ((runs[0][-1] - runs[1][-1]).abs().double().sum() / path).item()
    now = divergence.now()
    assert now["weight_alignment_error_unmapped"] == pytest.approx(unmapped, rel=1e-5)
    assert now["weight_alignment_error"] != pytest.approx(unmapped, rel=1e-2)
    assert set(now) == {"weight_alignment_error", "weight_alignment_error_unmapped", "quantized_weight_agreement"}
    assert now.items() <= divergence.results(PARTS)[0].items()


def test_two_equal_runs_are_exactly_equal():
    run = random_walk("oscillation", torch.Generator().manual_seed(3))
    total, _ = observe([run, run.clone()], UniformQuantizer(2, torch.ones(WEIGHTS).double())).results(PARTS)
    for name, value in total.items():
        assert value == (1 if "agreement" in name else 0), name


def test_nothing_to_count_is_null():
    run = torch.rand(1, WEIGHTS).expand(STEPS, WEIGHTS) * 0.2
    total, _ = observe([run, run.clone()], UniformQuantizer(2, torch.ones(WEIGHTS).double())).results(PARTS)
    for name in ("weight_alignment_error", "average_change_point_error", "average_oscillation_error",
                 "average_compressed_change_point_error", "quantized_weight_agreement_moved"):  # fmt: skip
        assert total[name] is None
    assert total["quantized_weight_agreement"] == total["change_point_sequence_agreement"] == 1
    assert ratio(torch.zeros(0), torch.zeros(0)) is None


def test_a_sample_of_sequences_gives_the_metrics_of_those_weights():
    generator = torch.Generator().manual_seed(5)
    first = random_walk("drift", generator)
    second = first.clone()
    second[2:, ::3] = first[:-2, ::3]
    quantizer = UniformQuantizer(2, torch.ones(WEIGHTS).double())
    sampled = sample_positions(PARTS, 24, seed=0)
    assert len(sampled) == 10 + 14
    assert sampled.tolist() == sorted(set(sampled.tolist()))
    total, _ = observe([first, second], quantizer, sampled=sampled).results(PARTS)
    levels = [quantizer.index(run)[:, sampled].tolist() for run in (first, second)]
    weights = second[:, sampled].double().tolist()
    expected = slow.metrics(*levels, weights[-1], weights, [1.0] * len(sampled))
    for name in ("compressed_change_point_sequence_agreement", "average_compressed_change_point_error",
                 "average_oscillation_error"):  # fmt: skip
        assert total[name] == pytest.approx(expected[name]), name
    assert sample_positions(PARTS, WEIGHTS, seed=0) is None


def test_observing_changes_nothing():
    buffer = torch.randn(100)
    before, state = buffer.clone(), torch.get_rng_state()
    trajectory = Trajectory(buffer, UniformQuantizer(2, torch.ones(100).double()))
    Divergence(Pair(trajectory, trajectory)).update()
    trajectory.observe(1)
    assert torch.equal(buffer, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_metric_is_one_class():
    class SameSign(Metric):
        """Share of latent weights with the same sign."""

        name = "same_sign"

        def terms(self):
            same = self.pair.reference.weights.sign() == self.pair.counterpart.weights.sign()
            return same, torch.ones_like(same)

    try:
        runs = [random_walk("drift", torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        total, layers = observe(runs, UniformQuantizer(2, torch.ones(WEIGHTS).double())).results(PARTS)
        assert total["same_sign"] == pytest.approx((runs[0][-1].sign() == runs[1][-1].sign()).float().mean().item())
        assert "same_sign" in layers["first"]
    finally:
        Metric.registry.remove(SameSign)


def test_correlation_is_pearsons():
    a, b = torch.randn(50), torch.randn(50)
    mean_a, mean_b = sum(a.tolist()) / 50, sum(b.tolist()) / 50
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    deviations = [math.sqrt(sum((x - m) ** 2 for x in v.tolist())) for v, m in ((a, mean_a), (b, mean_b))]
    assert correlation(a, b) == pytest.approx(covariance / (deviations[0] * deviations[1]), abs=1e-6)
    assert correlation(a, a) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, torch.full((50,), 0.1)) is None
    assert correlation(a[:1], b[:1]) is None


def test_inference_metrics_by_hand():
    """Both right; both wrong, alike; both wrong, otherwise, twice; only the reference wrong."""
    predicted_ref, predicted, targets = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 2, 0], [0, 0, 1, 1, 0]])
    reference, other = (3.0 * torch.nn.functional.one_hot(classes, 3) for classes in (predicted_ref, predicted))
    found = inference_metrics(reference, other, targets)
    assert found["inference_agreement"] == 2 / 5
    assert found["incorrect_inference_agreement"] == pytest.approx(1 / 3)
    assert found["logit_mse"] == pytest.approx(6 * 9 / 15)
    assert found["logit_mae"] == pytest.approx(6 * 3 / 15)
    assert inference_metrics(reference, other, predicted_ref)["incorrect_inference_agreement"] is None

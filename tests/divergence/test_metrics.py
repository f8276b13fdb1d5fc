from __future__ import annotations

import math

import pytest
import torch

from qat_ste import UniformQuantizer
from qat_ste.divergence import Divergence, Metric, Trajectories, TrajectoryPair, sample_positions
from qat_ste.divergence.outputs import correlation, inference_metrics, output_sums
from qat_ste.fake_quant import flat_layout
from qat_ste.fake_quant.flat_layout import FlatTensor, group_chunks, level_indices, split_into_chunks
from tests.divergence import slow

WEIGHTS, STEPS = 60, 80
BOUNDS = {"first": (0, 25), "second": (25, 60)}


def tensors(max_=(1.0, 1.0)) -> list[FlatTensor]:
    return [FlatTensor(name, *bounds, UniformQuantizer(2, end)) for (name, bounds), end in zip(BOUNDS.items(), max_)]


def random_walk(kind: str, generator: torch.Generator) -> torch.Tensor:
    """A recorded run, steps x weights: random drift, oscillation around thresholds, or no level changes."""
    noise = torch.randn(STEPS, WEIGHTS, generator=generator)
    start = torch.rand(WEIGHTS, generator=generator) * 2 - 1
    if kind == "drift":
        return start + (0.08 * noise).cumsum(0)
    if kind == "oscillation":  # a random side of a threshold at each step
        return (torch.randint(-1, 2, (WEIGHTS,), generator=generator) * 2 / 3) + 0.02 * noise.sign() * (
            start.abs() > 0.2
        )
    return start.expand(STEPS, WEIGHTS) * 0.999


def make_trajectories(weights, chunks, sampled=None):
    rows = len(weights)
    return Trajectories(weights, [chunks] * rows, [group_chunks(chunks, weights[0])] * rows, sampled)


def observe_step(trajectories, step):
    trajectories.observe(step, level_indices(trajectories[0].chunk_groups, trajectories.weights))


def observe(runs, flat_tensors, weight_map=None, sampled=None, first=0, last=WEIGHTS, settled=7):
    """Divergence of two recorded runs over weights ``first`` to ``last``, settled every ``settled`` steps."""
    weights = torch.stack([run[0, first:last] for run in runs])
    trajectories = make_trajectories(weights, split_into_chunks(flat_tensors, first, last), sampled)
    divergence = Divergence(TrajectoryPair(*trajectories, len(flat_tensors), weight_map))
    for step in range(1, STEPS):
        weights.copy_(torch.stack([run[step, first:last] for run in runs]))
        observe_step(trajectories, step)
        if (step % settled == 0 or step == STEPS - 1) and (changes := trajectories.settle()):
            divergence.changed(*changes)
    return divergence


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [("drift", "near"), ("drift", "drift"), ("oscillation", "near"),
                                   ("oscillation", "oscillation"), ("still", "still"), ("still", "drift")])  # fmt: skip
def test_every_metric_equals_the_reference_implementation(kinds, seed):
    generator = torch.Generator().manual_seed(seed)
    first = random_walk(kinds[0], generator)
    near = first.clone()  # like the first run, with every third weight delayed by two steps
    near[2:, ::3] = first[:-2, ::3]
    second = near if kinds[1] == "near" else random_walk(kinds[1], generator)
    max_ = torch.where(torch.arange(WEIGHTS) < 25, 1.0, 0.5).double()
    runs = [(run * max_).float() for run in (first, second)]
    quantizer = UniformQuantizer(2, max_)
    divergence = observe(runs, tensors((1.0, 0.5)), weight_map=lambda w, quantizer: w * 0.9)
    total, layers = divergence.results(list(BOUNDS))
    results = [(slice(None), total), *((slice(*BOUNDS[name]), values) for name, values in layers.items())]
    for tensor, values in results:
        levels = [quantizer.index(run)[:, tensor].tolist() for run in runs]
        weights = [run[:, tensor].double().tolist() for run in runs]
        mapped = (runs[0][-1] * 0.9)[tensor].double().tolist()
        expected = slow.metrics(*levels, mapped, weights[1], max_[tensor].tolist())
        for name, value in expected.items():
            assert values[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name


@pytest.mark.parametrize("cuts", [(0, 60), (0, 25, 60), (0, 7, 31, 60), (0, 60, 60)])
def test_sums_over_slices_equal_the_metrics_of_all_weights(cuts, monkeypatch):
    """For slices as on several ranks, short chunks, and ranges by channel instead of by tensor."""
    generator = torch.Generator().manual_seed(1)
    runs = [random_walk("drift", generator) for _ in range(2)]
    runs[1][:, ::2] = runs[0][:, ::2].roll(2, 0)
    whole = observe(runs, tensors((1.0, 0.5)), lambda w, quantizer: w * 0.9).results(list(BOUNDS))
    monkeypatch.setattr(flat_layout, "CHUNK_WEIGHTS", 9)
    by_channel = [FlatTensor(tensor.name, tensor.start, tensor.stop, UniformQuantizer(
        2, torch.full((tensor.stop - tensor.start,), tensor.quantizer.max).double())) for tensor in tensors((1.0, 0.5))]  # fmt: skip
    sums = []
    for flat_tensors in (tensors((1.0, 0.5)), by_channel):
        slices = [
            observe(runs, flat_tensors, lambda w, quantizer: w * 0.9, first=a, last=b) for a, b in zip(cuts, cuts[1:])
        ]
        for divergence in slices:
            divergence._reduce = lambda values: sums.append(values) or sum(sums)
            total, layers = divergence.results(list(BOUNDS))
        sums.clear()
        for result, expected in ((total, whole[0]), *((layers[name], whole[1][name]) for name in BOUNDS)):
            assert result == pytest.approx(expected, rel=1e-6)


def test_resuming_from_a_saved_state_changes_no_result():
    generator = torch.Generator().manual_seed(4)
    runs = [random_walk(kind, generator) for kind in ("drift", "oscillation")]
    chunks = split_into_chunks(tensors(), 0, WEIGHTS)

    def new(step):
        trajectories = make_trajectories(torch.stack([run[step] for run in runs]), chunks)
        return trajectories, Divergence(TrajectoryPair(*trajectories, 2))

    def continue_run(trajectories, divergence, steps):
        for step in steps:
            trajectories.weights.copy_(torch.stack([run[step] for run in runs]))
            observe_step(trajectories, step)
        divergence.changed(*trajectories.settle())
        return divergence

    uninterrupted = continue_run(*new(0), range(1, STEPS)).results(list(BOUNDS))
    first = continue_run(*new(0), range(1, 30))
    states = [first.pair.reference.state_dict(), first.pair.counterpart.state_dict(), first.state_dict()]
    buffers, second = new(29)
    for target, state in zip((second.pair.reference, second.pair.counterpart, second), states):
        target.load_state_dict(state)
    assert continue_run(buffers, second, range(30, STEPS)).results(list(BOUNDS)) == uninterrupted


def test_unmapped_error_and_metrics_over_time():
    generator = torch.Generator().manual_seed(0)
    runs = [random_walk("drift", generator) for _ in range(2)]
    divergence = observe(runs, tensors(), weight_map=lambda w, quantizer: w * 0.5)
    path = (runs[1][1:] - runs[1][:-1]).abs().double().sum()
    unmapped = ((runs[0][-1] - runs[1][-1]).abs().double().sum() / path).item()
    now = divergence.now()
    assert now["weight_alignment_error_unmapped"] == pytest.approx(unmapped, rel=1e-5)
    assert now["weight_alignment_error"] != pytest.approx(unmapped, rel=1e-2)
    assert set(now) == {"weight_alignment_error", "weight_alignment_error_unmapped", "quantized_weight_agreement"}
    assert now.items() <= divergence.results(list(BOUNDS))[0].items()


def test_equal_runs_agree_exactly():
    run = random_walk("oscillation", torch.Generator().manual_seed(3))
    total, _ = observe([run, run.clone()], tensors()).results(list(BOUNDS))
    for name, value in total.items():
        assert value == (1 if "agreement" in name else 0), name


def test_ratios_with_denominator_0_are_none():
    run = torch.rand(1, WEIGHTS).expand(STEPS, WEIGHTS) * 0.2
    total, _ = observe([run, run.clone()], tensors()).results(list(BOUNDS))
    for name in ("weight_alignment_error", "average_change_point_error", "average_oscillation_error",
                 "average_compressed_change_point_error", "quantized_weight_agreement_moved"):  # fmt: skip
        assert total[name] is None
    assert total["quantized_weight_agreement"] == total["change_point_sequence_agreement"] == 1


def test_metrics_of_sampled_sequences_equal_those_of_the_sampled_weights():
    generator = torch.Generator().manual_seed(5)
    first = random_walk("drift", generator)
    second = first.clone()
    second[2:, ::3] = first[:-2, ::3]
    quantizer = UniformQuantizer(2, 1.0)
    sampled = sample_positions(tensors(), 24, seed=0)
    assert len(sampled) == 10 + 14
    assert sampled.tolist() == sorted(set(sampled.tolist()))
    total, _ = observe([first, second], tensors(), sampled=sampled).results(list(BOUNDS))
    levels = [quantizer.index(run)[:, sampled].tolist() for run in (first, second)]
    weights = second[:, sampled].double().tolist()
    expected = slow.metrics(*levels, weights[-1], weights, [1.0] * len(sampled))
    for name in ("compressed_change_point_sequence_agreement", "average_compressed_change_point_error",
                 "average_oscillation_error"):  # fmt: skip
        assert total[name] == pytest.approx(expected[name]), name
    assert sample_positions(tensors(), WEIGHTS, seed=0) is None


def test_observing_changes_neither_weights_nor_random_state():
    buffer = torch.randn(2, 100)
    before, state = buffer.clone(), torch.get_rng_state()
    trajectories = make_trajectories(
        buffer, split_into_chunks([FlatTensor("w", 0, 100, UniformQuantizer(2, 1.0))], 0, 100)
    )
    buffer.sub_(0.5)
    before.sub_(0.5)
    observe_step(trajectories, 1)
    assert all(len(changes.positions) for changes in trajectories.settle())
    assert torch.equal(buffer, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_metric_is_one_class():
    class SameSign(Metric):
        """Share of latent weights with the same sign."""

        name = "same_sign"

        def terms(self, chunk_group):
            same = (
                self.pair.reference.weights[chunk_group.where].sign()
                == self.pair.counterpart.weights[chunk_group.where].sign()
            )
            return same, torch.ones_like(same)

    try:
        runs = [random_walk("drift", torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        total, layers = observe(runs, tensors()).results(list(BOUNDS))
        assert total["same_sign"] == pytest.approx((runs[0][-1].sign() == runs[1][-1].sign()).float().mean().item())
        assert "same_sign" in layers["first"]
    finally:
        Metric.registry.remove(SameSign)


def test_correlation_is_the_pearson_correlation():
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
    """Inputs: both right; both wrong, equal; both wrong, different (twice); only the reference wrong."""
    predicted_ref, predicted, targets = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 2, 0], [0, 0, 1, 1, 0]])
    reference, other = (3.0 * torch.nn.functional.one_hot(classes, 3) for classes in (predicted_ref, predicted))
    sums = output_sums(reference, other, targets)
    assert torch.equal(sum(output_sums(*(v[[i]] for v in (reference, other, targets))) for i in range(5)), sums)
    metrics = inference_metrics(sums)
    assert metrics["accuracy"] == 2 / 5
    assert metrics["inference_agreement"] == 2 / 5
    assert metrics["incorrect_inference_agreement"] == pytest.approx(1 / 3)
    assert metrics["logit_mse"] == pytest.approx(6 * 9 / 15)
    assert metrics["logit_mae"] == pytest.approx(6 * 3 / 15)
    none_wrong = inference_metrics(output_sums(reference, other, predicted_ref))
    assert none_wrong["incorrect_inference_agreement"] is None


@pytest.mark.parametrize("ignored", [-100, 255])
def test_targets_that_are_no_classes_count_nowhere(ignored):
    outputs = torch.eye(3)[[0, 1, 2, 0]] * torch.tensor([1.0, 1.0, 1.0, 50.0])[:, None]
    targets = torch.tensor([0, 1, 1, ignored])
    metrics = inference_metrics(output_sums(outputs, 2 * outputs, targets))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["logit_mse"] == pytest.approx(3 / 9)
    assert inference_metrics(output_sums(outputs, outputs, torch.full((4,), ignored))) == {}

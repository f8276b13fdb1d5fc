from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import ArgumentError, L2Penalty, SteEquivalent
from qat_ste.estimators import Dsq, Pwl, Ste, Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import COUNTERPART_LIST, jitter_percent
from qat_ste.experiment.lockstep import Stopped
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from qat_ste.quantizers.grids import GRIDS
from tests.arguments import WEIGHTS
from tests.experiment.tiny import ADAM, SGD, batches, network, run

DISTANCES = ("weight_alignment_error", "weight_alignment_error_unmapped", "average_change_point_error",
             "average_compressed_change_point_error", "average_oscillation_error", "logit_mse", "logit_mae")  # fmt: skip


def assert_identical(numbers):
    for name, value in vars(numbers).items():
        if "agreement" in name:
            assert value in (1, None), name
        elif name in DISTANCES:
            assert value in (0, None), name
    assert numbers.quantized_weight_agreement == 1
    assert numbers.weight_alignment_error == 0


def test_members_are_what_the_design_says():
    found = run(counterparts=["ste", "naive", "jitter", "replica"], lr=0.003)
    assert found.equivalence == "remap"
    assert found.lr_factor == pytest.approx(0.6095, abs=5e-4)
    ste = found.counterparts["ste"]
    assert (ste.initial_alignment_error, ste.initial_quantized_agreement) == (0.0, 1.0)
    assert_identical(found.counterparts["replica"])
    assert ste.weight_alignment_error < found.counterparts["naive"].weight_alignment_error / 2
    assert found.counterparts["jitter"].weight_alignment_error > 0
    assert set(ste.layers) == {"0.weight", "5.weight"}


def test_ste_starts_from_the_map_of_the_same_draw_and_at_the_scaled_rate():
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    cohort = Cohort(model, Tanh(5.5), SGD, 0.1, ["ste", "naive", "jitter_5"]).make_members()
    members = {name: cohort.local[number] for name, number in cohort.names.items()}
    reference, ste = members["reference"], members["ste"]
    for tensor in cohort.tensors:
        before, after = (member.weights.buffer[tensor.start : tensor.stop] for member in (reference, ste))
        assert torch.equal(after, SteEquivalent(Tanh(5.5), tensor.quantizer).weight_map(before))
    assert not torch.equal(ste.weights.buffer, reference.weights.buffer)
    assert reference.lrs == pytest.approx([0.1, 0.1])
    assert ste.lrs == pytest.approx([0.1 * cohort.equivalent.lr_factor, 0.1]), "unquantized tensors keep η"
    assert members["naive"].lrs == pytest.approx([0.1, 0.1])
    assert members["jitter_5"].lrs == pytest.approx([0.105, 0.105])
    assert torch.equal(members["naive"].weights.buffer, reference.weights.buffer)
    unquantized = [dict(member.model.named_parameters())["1.weight"] for member in members.values()]
    assert all(torch.equal(unquantized[0], other) for other in unquantized)


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_order_and_presence_of_members_change_no_number(optimizer):
    alone = {name: run(counterparts=[name], optimizer=optimizer, lr=0.01) for name in ("ste", "jitter")}
    together = run(counterparts=["jitter", "replica", "ste", "naive"], optimizer=optimizer, lr=0.01)
    for name, comparison in alone.items():
        assert vars(comparison.counterparts[name]) == vars(together.counterparts[name])
        assert vars(comparison.reference) == vars(together.reference)


def test_same_seed_same_numbers_and_another_seed_others():
    first = run()
    torch.rand(7)  # whatever the caller drew in between
    again, other = run(), run(seed=1)
    assert first.rows == again.rows
    assert first.rows != other.rows
    assert vars(first.counterparts["ste"]) == vars(again.counterparts["ste"])


def test_a_comparison_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    run(steps=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("estimator", "saturation"), [(Ste(), "range"), (Ste(), "none"), (Pwl(), "range")])
def test_ste_against_ste_is_exactly_zero(estimator, saturation):
    found = run(estimator=estimator, saturation=saturation, counterparts=["ste"])
    assert_identical(found.counterparts["ste"])
    assert found.lr_factor == 1
    assert found.verdict.statement.startswith("In this run (seed 0) the estimator did not matter at all")


def test_what_the_theorem_does_not_cover_is_trained_without_adjustment():
    found = run(estimator=Pwl(), saturation="none", counterparts=["ste", "naive"], steps=5)
    assert (found.equivalence, found.lr_factor) == ("none", None)
    assert "Pwl() is not positive" in found.equivalence_reason
    assert vars(found.counterparts["ste"]) == vars(found.counterparts["naive"])


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param("nf4", marks=pytest.mark.slow),
        pytest.param("fp4_e2m1", marks=pytest.mark.slow),
        [-1.0, -0.3, 0.2, 0.5],
    ],
)
def test_other_grids_are_compared_alike(levels):
    found = run(
        levels=levels, estimator=Dsq(0.2), counterparts=["ste", "naive", "replica"], steps=200, lr=0.01,
        optimizer=torch.optim.SGD, build_model=partial(network, dropout=0.0),
    )  # fmt: skip
    assert found.equivalence == "remap"
    ste, naive = found.counterparts["ste"], found.counterparts["naive"]
    assert (ste.initial_alignment_error, ste.initial_quantized_agreement) == (0, 1)
    assert ste.weight_alignment_error < naive.weight_alignment_error / 2
    assert_identical(found.counterparts["replica"])
    ((_, latent, fake_quantize), *_) = quantized_tensors(found.models["ste"])
    assert fake_quantize.quantizer.num_levels == len(GRIDS.get(str(levels), levels))
    assert torch.isin(fake_quantize(latent), fake_quantize.quantizer.levels).all()


def test_naive_and_ste_are_one_run_under_keep():
    model = quantize_weights(network(), WEIGHTS, Tanh(5.5))
    cohort = Cohort(model, Tanh(5.5), ADAM, 0.01, ["ste", "naive", "jitter"]).make_members()
    assert cohort.counterparts == {"ste": 1, "naive": 1, "jitter": 2}
    assert len(cohort.local) == 3
    found = run(optimizer=ADAM, lr=0.01)
    assert found.equivalence == "keep"
    assert vars(found.counterparts["ste"]) == vars(found.counterparts["naive"])


def test_an_optimizer_without_a_known_adjustment_says_so():
    found = run(optimizer=torch.optim.Adagrad, lr=0.01)
    assert found.equivalence == "none"
    assert "no adjustment is known" in found.verdict.statement


def test_dropout_noise_is_shared_and_differs_from_step_to_step():
    seen = {}

    class Spy(nn.Dropout):
        def forward(self, inputs):
            out = super().forward(inputs)
            seen.setdefault(self, []).append((out == 0) & (inputs != 0))  # held, so that no id is used twice
            return out

    def build():
        model = network()
        model[2], model[3] = nn.Softplus(), Spy(0.5)
        return model

    run(build_model=build, steps=3, validation=None, counterparts=["ste", "naive"])
    masks = [each for each in seen.values() if len(each) == 3]  # others are of copies for checks
    assert len(masks) == 3
    for step in range(3):
        assert torch.equal(masks[0][step], masks[1][step])
        assert torch.equal(masks[0][step], masks[2][step])
    assert not torch.equal(masks[0][0], masks[0][1])


def test_l2_penalty_is_that_of_the_loss_on_the_chosen_tensors():
    model = quantize_weights(network(0.0), WEIGHTS, Ste())
    inputs, targets = batches()[0]
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    L2Penalty(0.1, ["0.*", "5.bias"]).add_gradient(model)
    for name, parameter in model.named_parameters():
        chosen = name in ("0.parametrizations.weight.original", "0.bias", "5.bias")
        expected = plain[name] + (0.2 * parameter.detach() if chosen else 0)
        assert torch.allclose(parameter.grad, expected, atol=1e-7), name
        assert chosen != torch.equal(parameter.grad, plain[name]), name


def test_l2_penalty_shrinks_weights():
    norms = [run(l2=l2).models["reference"][5].parametrizations.weight.original.norm() for l2 in (0.0, 0.1)]
    assert norms[1] < norms[0]


def test_metrics_disturb_nothing():
    """The trained reference is what a plain loop over the same batches gives, bit for bit."""
    found = run(
        steps=12, counterparts=["ste"], schedule=lambda step: 1.0, validation=None, build_model=lambda: network(0.0)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = quantize_weights(network(0.0), WEIGHTS, Tanh(5.5))
        optimizer = SGD(model.parameters(), lr=0.05)
        data = batches()
        for step in range(12):
            inputs, targets = data[step % len(data)]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), found.models["reference"].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_row_a_logged_step_and_a_row_an_epoch():
    seen = []
    found = run(steps=20, every=5, steps_per_epoch=8, on_row=seen.append)
    assert seen == found.rows
    assert [row["step"] for row in seen if "reference/train_loss" in row] == [5, 10, 15, 20]
    assert [row["step"] for row in seen if "ste/validation_loss" in row] == [8, 16, 20]
    assert {"ste/weight_alignment_error", "naive/train_loss", "jitter/quantized_weight_agreement", "lr"} <= set(seen[0])


def test_without_validation_nothing_is_known_of_accuracies():
    found = run(validation=None, steps=3)
    assert found.reference.test_accuracy is None
    assert found.counterparts["ste"].inference_agreement is None
    assert found.counterparts["ste"].weight_alignment_error > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named():
    data = batches()
    data[3] = (data[3][0] * math.inf, data[3][1])
    with pytest.raises(
        FloatingPointError, match=r"the loss of reference is nan at step 4; first tensor that is not finite"
    ):
        run(batches=data, every=5)


def test_stop_ends_at_the_next_step():
    rows = []
    with pytest.raises(Stopped, match="stopped after step 7") as stopped:
        run(on_row=rows.append, stop=lambda: len(rows) >= 7, every=1, validation=None)
    assert stopped.value.step == 7


def test_batches_that_cannot_be_read_again():
    with pytest.raises(ValueError, match="batches must be a list or loader that can be iterated again"):
        run(batches=iter(batches()))
    assert run(batches=iter(batches()), steps=5, validation=None).steps == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 100000000, got 0"),
        ({"lr": -1.0}, "lr must be a positive finite number, got -1.0"),
        ({"bits": 0}, "bits must be a whole number from 1 to 16, got 0"),
        (
            {"counterparts": ["ste", "nave"]},
            "counterparts must be a list of at least one of ste, naive, jitter, replica, mirrored, ste_once and",
        ),
        ({"include": ["Conv9d"]}, "include must be patterns that match modules of the model \\('Conv9d' matches none"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


def test_names_of_jitter_runs():
    assert [jitter_percent(name) for name in ("jitter", "jitter_0.1", "jitter_10", "jitter_x", "jitter_-1", "ste")] == [
        1.0, 0.1, 10.0, None, None, None]  # fmt: skip
    assert ["ste", "jitter_2"] in COUNTERPART_LIST
    assert not any([name] in COUNTERPART_LIST for name in ("Jitter", "jitter_", None))


def test_saturated_and_moved_fractions_are_those_of_the_final_weights():
    found = run(steps=60, lr=0.3, optimizer=partial(torch.optim.SGD), saturation="none")
    latent = torch.cat([latent.detach().flatten() for _, latent, _ in quantized_tensors(found.models["reference"])])
    ends = torch.cat([torch.full((latent.numel(),), fake.quantizer.max)
                      for _, latent, fake in quantized_tensors(found.models["reference"])])  # fmt: skip
    assert found.reference.saturated_fraction == pytest.approx((latent.abs() > ends).double().mean().item(), abs=1e-6)
    assert 0 < found.reference.moved_fraction < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    found = run(device="cuda", counterparts=["ste", "naive", "jitter", "replica"])
    assert found.counterparts["ste"].initial_quantized_agreement == 1


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError, TypeError, ValueError, RuntimeError])
@pytest.mark.parametrize("argument", ["on_row", "stop"])
def test_the_users_own_error_reaches_the_user(argument, error):
    """Also where validation of one image, which batch norm cannot train on, would have been blamed."""

    def fail(*_):
        raise error("of the user")

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))

    with pytest.raises(error, match="^of the user$"):
        run(build_model=build, steps=4, every=1, validation=batches(1, size=1), **{argument: fail})


def test_what_cannot_be_called_with_a_row_is_told():
    with pytest.raises(ArgumentError, match="on_row must be a function that can be called with"):
        run(steps=4, on_row=lambda: None)


def test_validation_that_does_not_fit_is_told_by_its_name():
    with pytest.raises(ValueError, match="validation must be batches that fit the model, which does not accept inputs"):
        run(steps=4, validation=[(torch.zeros(2, 3, 6, 6), torch.zeros(2, dtype=torch.long))])


def test_batches_that_end_too_early_are_told():
    class Few:
        steps_per_epoch = 3

        def starting_at(self, step):
            return iter(batches(3)[step:])

    with pytest.raises(ValueError, match="batches must be enough for 40 steps, got '3 batches'"):
        run(batches=Few(), validation=None)


@pytest.mark.parametrize(
    ("name", "percent"),
    [("jitter", 1), ("jitter_10", 10), ("jitter_0.5", 0.5), ("jitter_.5", 0.5), ("jitter_1e1", 10), ("jitter_1_0", None),
     ("jitter_ 1", None), ("jitter_+1", None), ("jitter_", None), ("jitter_nan", None), ("jitter_0", None),
     ("jitter_1001", None), ("Jitter_1", None), ("jitter_١", None)],
)  # fmt: skip
def test_jitter_takes_a_plain_number_of_per_cent(name, percent):
    assert jitter_percent(name) == percent


def test_validation_every_so_many_epochs_and_after_the_last_step():
    rows = []
    run(steps=40, validate_every=3, on_row=rows.append)  # an epoch is one pass over five batches
    assert [row["step"] for row in rows if "ste/validation_loss" in row] == [15, 30, 40]

"""Batches, loaders and losses that users bring: the right numbers, or a refusal by name."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from qat_ste import ArgumentError, Checkpoints
from tests.experiment.test_user_models import continued, replica_error
from tests.experiment.tiny import batches, network, run

INPUTS, TARGETS = (torch.cat(values) for values in zip(*batches(), strict=True))


def loader(**options) -> DataLoader:
    return DataLoader(TensorDataset(INPUTS, TARGETS), 16, **options)


class Transformed(Dataset):
    """Draws its noise from the global generators of NumPy and Python."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return INPUTS[index] + float(np.random.rand()) + random.random(), TARGETS[index]


LOADERS = {
    "shuffled": partial(loader, shuffle=True),
    "a generator of its own": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(1)),
    "a random sampler": lambda: loader(sampler=WeightedRandomSampler(torch.ones(80), 80)),
    "random transforms": lambda: DataLoader(Transformed(), 16),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_a_loader_that_shuffles_resumes_bit_for_bit(make, tmp_path):
    whole, resumed = continued(tmp_path, network, make_batches=make)
    assert whole == resumed


@pytest.mark.slow
def test_a_loader_with_workers_resumes_bit_for_bit(tmp_path):
    make = partial(DataLoader, Transformed(), 16, shuffle=True, num_workers=1, persistent_workers=True)
    whole, resumed = continued(tmp_path, network, make_batches=make)
    assert whole == resumed


def test_every_epoch_of_a_shuffled_loader_has_each_sample_once_in_another_order():
    seen = []

    def spy(outputs, targets):
        seen.append(targets.clone())
        return F.cross_entropy(outputs, targets)

    indices = torch.arange(80)
    data = DataLoader(TensorDataset(INPUTS, indices), 16, shuffle=True)
    run(batches=data, loss=lambda o, t: spy(o, t) * 0 + F.cross_entropy(o, t % 4), steps=10, validation=None,
        build_model=lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 80)), counterparts=["ste"],
        )  # fmt: skip
    trained = torch.stack(seen[-20:][::2])  # of two members, the last ten steps
    epochs = trained.reshape(2, 80)
    assert all(torch.equal(epoch.sort().values, indices) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_validation_does_not_change_the_order_of_training():
    with_validation, without = (
        run(batches=loader(shuffle=True), validation=validation, steps=20, steps_per_epoch=5)
        for validation in (loader(shuffle=True), None)
    )
    assert torch.equal(*(each.models["reference"][0].bias for each in (with_validation, without)))


def test_a_loader_that_has_moved_on_is_refused_when_the_run_resumes(tmp_path):
    data = loader(shuffle=True, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="the batches are others than those it was trained on; pass a loader as new"):
        continued(tmp_path, network, make_batches=lambda: data)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(INPUTS, TARGETS, strict=True)


def test_loaders_without_a_length_and_iterators_train():
    expected = vars(run(steps=10).counterparts["ste"])
    for data in (DataLoader(Stream(), 16), (batch for _ in range(2) for batch in batches())):
        assert vars(run(batches=data, steps=10, steps_per_epoch=5).counterparts["ste"]) == expected
    with pytest.raises(ArgumentError, match="steps_per_epoch must be given where epochs are"):
        run(batches=DataLoader(Stream(), 16), epochs=2)


def test_validation_that_can_be_iterated_once_is_refused_before_training():
    rows = []
    with pytest.raises(ArgumentError, match="validation must be a list or loader that can be iterated again"):
        run(validation=iter(batches(2)), on_row=rows.append)
    assert not rows


def plain() -> nn.Module:
    """Without batch norm, whose statistics depend on how a batch is divided."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def masked(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches whose first targets are ignored, from the third batch on."""
    data = batches()
    return [(inputs, torch.where(torch.arange(16) < count * (n > 1), -100, targets))
            for n, (inputs, targets) in enumerate(data)]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "data"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), batches()),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0, 0.1])), batches()),
        (F.cross_entropy, masked(7)),
    ],
    ids=["a sum", "class weights", "ignored targets"],
)
def test_accumulation_of_a_loss_that_is_no_mean_of_samples_is_refused(loss, data):
    with pytest.raises(ArgumentError, match="accumulate must be 1 with this loss: .* reduction='sum'"):
        run(build_model=plain, loss=loss, batches=data, accumulate=2, every=1)
    whole = run(build_model=plain, batches=batches(), steps=5, every=1).rows
    divided = run(build_model=plain, batches=batches(), steps=5, every=1, accumulate=2).rows
    assert [row["ste/train_loss"] for row in divided if "ste/train_loss" in row] == pytest.approx(
        [row["ste/train_loss"] for row in whole if "ste/train_loss" in row], rel=1e-5), "control: a mean"  # fmt: skip


def test_a_single_column_of_outputs_has_no_accuracy():
    data = [(inputs, (targets > 1).float()) for inputs, targets in batches()]
    whole = [(inputs, targets.long()) for inputs, targets in data]

    def loss(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float())

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 1))

    for each in (data, whole):
        result = run(build_model=build, batches=each, validation=each[:2], loss=loss, steps=5)
        assert result.reference.test_accuracy is None
        assert result.counterparts["ste"].inference_agreement is None


def test_ignored_targets_count_neither_as_right_nor_as_wrong():
    data = masked(7)[2:]
    comparison = run(validation=data, steps=10, build_model=partial(network, 0.0))
    model = comparison.models["reference"].eval()
    right = torch.cat([(model(inputs).argmax(1) == targets)[targets >= 0] for inputs, targets in data])
    assert comparison.reference.test_accuracy == pytest.approx(right.double().mean().item())
    everything = run(validation=[(inputs, torch.full_like(targets, -100)) for inputs, targets in data],
                     loss=partial(F.cross_entropy, reduction="sum"), steps=5)  # fmt: skip
    assert everything.reference.test_accuracy is None


def test_an_error_in_the_callback_is_the_users_own():
    def on_row(row):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(on_row=on_row, steps_per_epoch=5, validation=[(INPUTS[:1], TARGETS[:1])])


def test_batches_that_are_views_and_batches_of_other_sizes():
    views = [(INPUTS[n : n + 16], TARGETS[n : n + 16]) for n in range(0, 80, 16)]
    assert run(batches=views, steps=10).rows == run(steps=10).rows
    before = INPUTS.clone()
    sizes = [(INPUTS[:16], TARGETS[:16]), (INPUTS[16:23], TARGETS[16:23])]
    assert replica_error(run(batches=sizes, steps=6, counterparts=["replica"])) == 0
    assert torch.equal(INPUTS, before)


def test_a_checkpoint_of_a_version_without_digests_resumes(tmp_path):
    whole, resumed = continued(tmp_path, network)
    assert whole == resumed
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state.pop("digests")
    torch.save(state, tmp_path / "checkpoint.pt")
    assert run(steps=20, every=1, steps_per_epoch=5, checkpoints=Checkpoints(tmp_path)).rows == whole

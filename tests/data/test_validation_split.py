"""Validation splits: what is held out, that training never sees it, and that the original data set stays as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from qat_ste.base.errors import ArgumentError
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.data.imagenet import imagenet
from qat_ste.data.in_memory import InMemoryDataset
from qat_ste.data.mnist import mnist
from qat_ste.data.text import text
from tests.data.images import CPU, same, training
from tests.data.test_data import numbered


def counted(batches) -> Counter[tuple[int, int]]:
    """How often each image occurs with its label; an image is told by a hash of its bits."""
    found = Counter()
    for images, labels in batches:
        bits = images.flatten(1).view(torch.int32).long()
        factors = torch.randint(2**62, bits.shape[1:], generator=torch.Generator().manual_seed(0))
        found.update(zip((bits * factors).sum(1).tolist(), labels.tolist(), strict=True))
    return found


@pytest.fixture
def positions(tmp_path) -> Path:
    """20,000 tokens, each of which is its own position."""
    path = tmp_path / "positions.bin"
    np.arange(20_000, dtype="<u2").tofile(path)
    return path


@pytest.fixture(params=["digits", "mnist", "folder", pytest.param("workers", marks=pytest.mark.slow), "cache", "text"])
def make(request, tmp_path):
    """Makes a data set anew at each call."""
    if request.param == "digits":
        return digits
    if request.param == "mnist":
        folder = request.getfixturevalue("mnist_folder")
        return lambda: mnist(folder, download=False)
    if request.param == "text":
        path = request.getfixturevalue("positions")
        return lambda: text(file=path, context=16, vocabulary=20_000)
    root, workers = request.getfixturevalue("coloured"), 2 * (request.param == "workers")
    return lambda: imagenet(root, 32, workers, cache=tmp_path / "cache" if request.param == "cache" else None)


def test_the_original_stays_as_it_was_and_a_split_depends_on_the_seed_alone(make):
    def content(data):
        data.prepare()
        return training(data, 3) + list(data.test_batches(CPU)), data.fingerprint

    original = make()
    before, fingerprint = content(original)
    generator = torch.get_rng_state()
    split, again, other = (original.with_validation(seed) for seed in (1, 1, 2))
    held_out = list(split.validation_batches(CPU))
    assert same(held_out, again.validation_batches(CPU))
    assert same(held_out, make().with_validation(1).validation_batches(CPU))
    assert same(held_out, other.with_validation(1).validation_batches(CPU)), "the split of a copy is drawn anew"
    assert same(held_out, split.validation_batches(CPU)), "read twice"
    assert not same(held_out, other.validation_batches(CPU))
    assert same(training(split, 3), training(again, 3))
    assert not same(training(split, 3), training(other, 3))
    assert not same(training(split, 3), before[:3])
    assert same(split.test_batches(CPU), before[3:])
    assert torch.equal(torch.get_rng_state(), generator)
    assert len({fingerprint, split.fingerprint, other.fingerprint}) == 3
    assert split.fingerprint == again.fingerprint == make().with_validation(1).fingerprint
    for data in (original, make()):
        batches, unchanged = content(data)
        assert same(batches, before)
        assert unchanged == fingerprint


def test_a_data_set_without_a_split_and_wrong_seeds_are_rejected(make):
    with pytest.raises(ArgumentError, match="^validation_seed must be set by with_validation, got None$"):
        make().validation_batches(CPU)
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(ArgumentError, match=f"^seed must be a whole number from 0 to 4294967295, got {seed}$"):
            make().with_validation(seed)


# In memory


@pytest.mark.parametrize(
    ("name", "total", "held_out", "batch"), [("digits", 1437, 287, 50), ("mnist", 60_000, 5000, 1000)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_training_reads_all_images_in_memory_but_those_held_out(request, name, total, held_out, batch, shuffle):
    data = digits() if name == "digits" else mnist(request.getfixturevalue("mnist_folder"), download=False)
    everything = counted([(data.train.images, data.train.labels)])
    split = data.with_validation(3)
    batches = split.train_batches(batch, shuffle, 0, CPU)
    assert batches.steps_per_epoch * batch == total - held_out
    seen = counted(training(split, batches.steps_per_epoch, 0, batch, shuffle=shuffle))
    validation = counted(split.validation_batches(CPU))
    assert (seen.total(), validation.total()) == (total - held_out, held_out)
    assert seen + validation == everything
    assert not seen.keys() & validation.keys()
    whole = counted(training(data, 3, 0, total // 3, shuffle=shuffle))
    assert validation < whole == everything, "the original trains on the images held out"


def test_validation_images_in_memory_keep_their_order_and_are_shared_by_the_ranks(mnist_folder):
    split = mnist(mnist_folder, download=False).with_validation(0)
    whole = list(split.validation_batches(CPU))
    parts = [list(split.validation_batches(CPU, Shard(rank, 2))) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 2]
    assert same([parts[number % 2][number // 2] for number in range(5)], whole)


def test_a_tenth_of_a_users_images_is_held_out():
    data = InMemoryDataset(numbered(50), numbered(4), num_classes=50)
    (images, labels), *others = data.with_validation(0).validation_batches(CPU)
    assert not others
    assert len(labels) == 5
    assert labels.tolist() == sorted(labels.tolist()) == images.flatten().tolist()
    drawn = torch.cat([y for seed in range(50) for _, y in data.with_validation(seed).validation_batches(CPU)])
    assert len(set(drawn.tolist())) == 50, "each image can be drawn"


@pytest.mark.parametrize("held_out", [0, 50, 2.5])
def test_rejects_a_number_of_images_that_cannot_be_held_out(held_out):
    data = InMemoryDataset(numbered(50), numbered(4), 50, held_out)
    assert len(training(data, 1)) == 1, "only tuning needs the number"
    with pytest.raises(ArgumentError, match=f"^held_out must be a whole number from 1 to 49, got {held_out}$"):
        data.with_validation(0)


# Text


def test_training_reads_all_tokens_but_those_held_out(positions, monkeypatch):
    data = text(file=positions, context=16, vocabulary=20_000)
    split = data.with_validation(3)
    monkeypatch.setattr("qat_ste.data.tokens.MOST_LOGITS", 10 * 16 * 20_000)
    validation = list(split.validation_batches(CPU))
    tokens = torch.cat([inputs for inputs, _ in validation]).flatten().tolist()
    start = tokens[0]
    assert start % 1000 == 0
    assert tokens == list(range(start, start + 62 * 16)), "all windows of one block, in order"
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in validation)
    block = set(range(start, start + 1000))
    left = [token for token in range(18_000) if token not in block]
    batches = training(split, 1062, batch_size=1, shuffle=False)
    assert torch.cat([inputs for inputs, _ in batches]).flatten().tolist() == left[: 1062 * 16]
    assert [int(targets[0, -1]) for _, targets in batches] == left[16 : 1062 * 16 + 1 : 16]
    for dataset, expected in ((split, set(left)), (data, set(range(18_000)))):
        seen = {
            token for batch in training(dataset, 200, batch_size=64) for token in torch.cat(batch).flatten().tolist()
        }
        assert seen <= expected
        assert len(seen) > 0.99 * len(expected)
        assert (block <= seen or len(block & seen) > 990) == (dataset is data), "the original trains on the block"
    parts = [list(split.validation_batches(CPU, Shard(rank, 2))) for rank in (0, 1)]
    assert same([parts[number % 2][number // 2] for number in range(7)], validation)


def test_the_block_is_one_of_eighteen(positions):
    data = text(file=positions, context=16, vocabulary=20_000)
    first = [next(iter(data.with_validation(seed).validation_batches(CPU)))[0][0, 0] for seed in range(150)]
    assert sorted(set(map(int, first))) == list(range(0, 18_000, 1000))


def test_a_part_of_the_block_is_evaluated_where_that_is_asked_for(positions):
    split = text(file=positions, context=16, vocabulary=20_000, validation_tokens=160).with_validation(3)
    (inputs, _), *_ = split.validation_batches(CPU)
    assert (inputs[:, 0] - inputs[0, 0]).tolist() == [16 * (62 * number // 10) for number in range(10)]


def test_rejects_a_context_longer_than_the_block(positions):
    data = text(file=positions, context=1000, vocabulary=20_000)
    assert len(list(data.test_batches(CPU))) == 1
    allowed = "shorter than a validation split of 1000 tokens, 5 % of positions.bin"
    with pytest.raises(ArgumentError, match=f"^context must be {allowed}, got 1000$"):
        data.with_validation(0)
    text(file=positions, context=999, vocabulary=20_000).with_validation(0)

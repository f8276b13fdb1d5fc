from __future__ import annotations

import gzip
import shutil

import pytest
import torch

from qat_ste.base.errors import ArgumentError
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.data.in_memory import EvaluationBatches, InMemoryBatches, Split
from qat_ste.data.mnist import FILES, mnist


def numbered(count: int) -> Split:
    return Split(torch.arange(count).float().reshape(-1, 1, 1, 1), torch.arange(count))


def batch(batches: InMemoryBatches, step: int):
    return next(batches.starting_at(step))


def test_digits_have_the_documented_sizes():
    data = digits()
    assert (len(data.train), len(data.test), data.num_classes) == (1437, 360, 10)
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.train.images.min() == 0
    assert data.train.images.max() == 1
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(10))
    assert torch.equal(data.train.images, digits().train.images)


@pytest.mark.parametrize("file_exists", [True, False])
def test_digits_equal_those_of_scikit_learn(monkeypatch, file_exists):
    from sklearn.datasets import load_digits

    if not file_exists:
        monkeypatch.setattr("qat_ste.data.digits.find_spec", lambda name: None)
    data = digits()
    images, labels = (torch.cat(both) for both in zip(*(vars(data.train).values(), vars(data.test).values())))
    pixels, targets = load_digits(return_X_y=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.flatten(1) * 16, torch.from_numpy(pixels).float()[order])
    assert torch.equal(labels, torch.from_numpy(targets)[order])


def test_file_order_wraps_around():
    batches = InMemoryBatches(numbered(10), 4, shuffle=False, seed=0)
    assert [batch(batches, step)[1].tolist() for step in (0, 1, 2, 5)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [0, 1, 2, 3]]  # fmt: skip


def test_shuffled_epochs_are_permutations_of_seed_and_epoch():
    batches = InMemoryBatches(numbered(10), 3, shuffle=True, seed=5)
    epochs = [torch.cat([batch(batches, 3 * epoch + place)[1] for place in range(3)]).tolist() for epoch in range(3)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    other = InMemoryBatches(numbered(10), 3, shuffle=True, seed=5)
    assert batch(other, 4)[1].tolist() == epochs[1][3:6], "independent of earlier reads"
    assert batch(InMemoryBatches(numbered(10), 3, shuffle=True, seed=6), 0)[1].tolist() != epochs[0][:3]
    read = [labels.tolist() for _, (_, labels) in zip(range(4), batches.starting_at(0), strict=False)]
    assert read[:3] == [epochs[0][:3], epochs[0][3:6], epochs[0][6:]]


def test_images_and_labels_stay_together():
    for images, labels in (
        batch(InMemoryBatches(numbered(50), 7, True, 0), 3),
        next(iter(EvaluationBatches(numbered(50)))),
    ):
        assert torch.equal(images.flatten().long(), labels)
    assert sum(len(labels) for _, labels in EvaluationBatches(numbered(50), 8)) == 50


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_concatenated_shards_equal_the_global_batch(shuffle, ranks):
    whole = InMemoryBatches(numbered(30), 8, shuffle, 3).starting_at(2)
    shards = [InMemoryBatches(numbered(30), 8, shuffle, 3, Shard(r, ranks)).starting_at(2) for r in range(ranks)]
    for (_, labels), *shares in zip(whole, *shards, range(9), strict=False):
        assert torch.equal(torch.cat([share for _, share in shares[:-1]]), labels)
    read = torch.cat([y for r in range(ranks) for _, y in EvaluationBatches(numbered(50), 8, Shard(r, ranks))])
    assert sorted(read.tolist()) == list(range(50))


def test_rejects_a_batch_that_the_ranks_do_not_divide():
    with pytest.raises(ArgumentError, match="batch_size must be a multiple of 3, the number of ranks, got 8"):
        InMemoryBatches(numbered(30), 8, True, 0, Shard(0, 3))


@pytest.mark.parametrize("size", [0, 11, 99999])
def test_rejects_a_batch_larger_than_the_split(size):
    with pytest.raises(ArgumentError, match=f"batch_size must be from 1 to 10, the number of images, got {size}"):
        InMemoryBatches(numbered(10), size, True, 0)


def test_mnist_has_the_known_counts_and_pixel_statistics(mnist_folder):
    data = mnist(mnist_folder, download=False)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.train.labels[0], data.test.labels[0]) == (5, 7)
    assert data.train.images.double().mean().item() == pytest.approx(0.130660, abs=1e-6)
    assert data.train.images.double().std().item() == pytest.approx(0.308108, abs=1e-6)
    assert data.train.images.shape == (60_000, 1, 28, 28)


def test_mnist_is_read_gzipped_or_not_and_writes_nothing(mnist_folder, tmp_path):
    for number, name in enumerate(FILES):
        gzipped = mnist_folder / "MNIST" / "raw" / f"{name}.gz"
        if number % 2:
            shutil.copyfile(gzipped, tmp_path / gzipped.name)
        else:
            (tmp_path / name).write_bytes(gzip.decompress(gzipped.read_bytes()))
    before = sorted(path.name for path in tmp_path.iterdir())
    assert len(mnist(tmp_path, download=False).test) == 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_damaged_mnist_file_is_named(mnist_folder, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(mnist_folder / "MNIST" / "raw" / f"{name}.gz", raw / f"{name}.gz")
    broken = raw / "t10k-labels-idx1-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"t10k-labels-idx1-ubyte\.gz is damaged: 4442 bytes with MD5 .*, expected MD5 ec29"
    ):
        mnist(tmp_path, download=False)


def test_missing_mnist_files_are_named_with_the_searched_folders(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path, download=False)
    message = str(caught.value)
    assert all(name in message for name in FILES)
    assert f"{tmp_path}" in message
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "dataset.download=false" in message
    assert "\n" not in message

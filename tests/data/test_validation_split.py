"""Validation splits: what is held out, that training never sees it, and that the original data set stays as it was."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qat_ste.base.errors import ArgumentError
from qat_ste.data import image_folder
from qat_ste.data.crops import ImageSubset
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.data.image_folder import ImageFolderDataset
from qat_ste.data.imagenet import imagenet
from qat_ste.data.in_memory import InMemoryDataset
from qat_ste.data.mnist import mnist
from qat_ste.data.text import text
from tests.data.images import CPU, same, training
from tests.data.test_data import numbered

SIZES = {"ant": 23, "bee": 15, "fly": 4, "moth": 1}  # training images of each class
HELD_OUT = {0: 2, 1: 2, 2: 1}  # of each label; the only image of a class is not held out


@pytest.fixture
def coloured(tmp_path) -> Path:
    """Images of one colour each, which their crops show too; see ``numbers``."""
    number = 0
    for split, sizes in (("train", SIZES), ("val", dict.fromkeys(SIZES, 2))):
        for kind, size in sizes.items():
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for place in range(size):
                Image.new("RGB", (40, 50), (number * 4, 100, 255 - number)).save(folder / f"{place:02d}.png")
                number += 1
    return tmp_path / "data"


def colour_folder(root: Path, workers: int = 0, on_error: str = "stop", cache: Path | None = None):
    return ImageFolderDataset(root, 32, 36, (0.0,) * 3, (1.0,) * 3, workers, on_error, cache)


def numbers(batches) -> list[int]:
    """The numbers, in file order, of the coloured images in these batches."""
    images = torch.cat([images for images, _ in batches])
    assert (images == images[:, :, :1, :1]).all()
    return (images[:, 0, 0, 0] * 255 / 4).round().int().tolist()


def counted(batches) -> Counter[bytes]:
    return Counter(
        image.numpy().tobytes() + bytes([label]) for images, labels in batches for image, label in zip(images, labels)
    )


@pytest.fixture
def positions(tmp_path) -> Path:
    """20,000 tokens, each of which is its own position."""
    path = tmp_path / "positions.bin"
    np.arange(20_000, dtype="<u2").tofile(path)
    return path


@pytest.fixture(params=["digits", "mnist", "folder", "workers", "cache", "text"])
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


# Folders of images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_training_reads_all_images_of_a_folder_but_those_held_out(coloured, tmp_path, monkeypatch, workers, cached):
    monkeypatch.setattr(image_folder, "TEST_BATCH", 2)
    data = colour_folder(coloured, workers, cache=tmp_path / "cache" if cached else None)
    split = data.with_validation(5)
    split.prepare()
    validation = list(split.validation_batches(CPU))
    held_out = numbers(validation)
    assert held_out == sorted(held_out)
    assert Counter(torch.cat([labels for _, labels in validation]).tolist()) == HELD_OUT
    assert [data.train.labels[number] for number in held_out] == torch.cat([y for _, y in validation]).tolist()
    for epoch in range(3):
        assert sorted(numbers(training(split, 2, 2 * epoch, 19)) + held_out) == list(range(43))
    assert numbers(training(split, 2, batch_size=19, shuffle=False)) == sorted(set(range(43)) - set(held_out))
    assert sorted(numbers(training(data, 1, batch_size=43))) == list(range(43)), "the original trains on all"
    parts = [list(split.validation_batches(CPU, Shard(rank, 2))) for rank in (0, 1)]
    assert [numbers(part) for part in parts] == [held_out[:2] + held_out[4:], held_out[2:4]]


def test_validation_images_are_prepared_as_test_images(tiny):
    for path in (tiny / "val").glob("*/*"):
        path.unlink()
    data = imagenet_of_train_and_val(tiny)
    images, labels = next(iter(data.test_batches(CPU)))
    ((held_out, classes),) = data.with_validation(4).validation_batches(CPU)
    places = [int((images == image).flatten(1).all(1).nonzero()) for image in held_out]
    assert labels[places].tolist() == classes.tolist() == [0, 1]


def imagenet_of_train_and_val(root: Path) -> ImageFolderDataset:
    """The training images are the test images, too."""
    for path in (root / "train").glob("*/*"):
        (root / "val" / path.parent.name / path.name).write_bytes(path.read_bytes())
    return imagenet(root, 32, 0)


def test_the_copy_reads_the_cache_of_the_original(coloured, tmp_path):
    cache = tmp_path / "cache"
    data = colour_folder(coloured, cache=cache)
    data.prepare()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir()) == ["train", "val"]
    for path in coloured.rglob("*.png"):
        path.write_bytes(bytes(path.stat().st_size))  # of equal size, to show that the images come from the cache
    split = data.with_validation(5)
    split.prepare()
    assert len(set(numbers(training(split, 2, batch_size=19))) | set(numbers(split.validation_batches(CPU)))) == 43
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_image_is_not_replaced_by_one_held_out(coloured, tmp_path, workers, cached):
    held_out = numbers(colour_folder(coloured).with_validation(5).validation_batches(CPU))
    files = colour_folder(coloured).train
    left = sorted(set(range(43)) - set(held_out))
    before = next(number for number in left if number + 1 in held_out)
    other = next(number for number in held_out if number != before + 1)
    for number in (before, other):
        Path(files.path(number)).write_text("This is no picture.")
    data = colour_folder(coloured, workers, "skip", tmp_path / "cache" if cached else None)
    split = data.with_validation(5)
    split.prepare()
    expected = [left[left.index(number) + 1] if number == before else number for number in left]
    assert numbers(training(split, 2, batch_size=19, shuffle=False)) == expected
    assert numbers(split.validation_batches(CPU)) == [number for number in held_out if number != other]
    assert split.skipped == sorted(map(files.path, (before, other)))
    assert data.skipped == []
    replaced = numbers(training(data, 1, batch_size=43, shuffle=False))[before]
    assert replaced in held_out, "the original replaces it by one held out"


def test_rejects_a_folder_with_one_image_of_each_class(coloured):
    for path in (coloured / "train").glob("*/*"):
        if path.name != "00.png":
            path.unlink()
    message = f"^root must be a folder with two training images of a class, got '{coloured}'$"
    with pytest.raises(ArgumentError, match=message):
        colour_folder(coloured).with_validation(0)


def test_images_at_some_rows_can_be_sent_to_workers(coloured):
    files = colour_folder(coloured).train
    view = pickle.loads(pickle.dumps(ImageSubset(files, torch.tensor([3, 30]))))
    assert (len(view), view.labels.tolist()) == (2, files.labels[[3, 30]].tolist())
    assert torch.equal(view.read(1), files.read(30))


def test_a_tenth_of_each_class_of_real_images_is_held_out(real):
    data = imagenet(real, 32, 0)
    labels = torch.cat([labels for _, labels in data.with_validation(0).validation_batches(CPU)])
    assert labels.bincount().tolist() == [int(size / 10 + 0.5) for size in data.train.labels.bincount().tolist()]


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

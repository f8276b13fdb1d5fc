"""Validation splits of image folders: classes, caches and broken images."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch

from qat_ste.base.errors import ArgumentError
from qat_ste.data import image_folder
from qat_ste.data.crops import ImageSubset
from qat_ste.data.dataset import Shard
from qat_ste.data.image_folder import ImageFolderDataset
from qat_ste.data.imagenet import imagenet
from tests.data.images import CPU, training

HELD_OUT = {0: 2, 1: 2, 2: 1}  # of each label; the only image of a class is not held out


def colour_folder(root: Path, workers: int = 0, on_error: str = "stop", cache: Path | None = None):
    return ImageFolderDataset(root, 32, 36, (0.0,) * 3, (1.0,) * 3, workers, on_error, cache)


def numbers(batches) -> list[int]:
    """The numbers, in file order, of the coloured images in these batches."""
    images = torch.cat([images for images, _ in batches])
    assert (images == images[:, :, :1, :1]).all()
    return (images[:, 0, 0, 0] * 255 / 4).round().int().tolist()


@pytest.mark.parametrize(
    ("workers", "cached"), [(0, False), (2, False), (0, True), pytest.param(2, True, marks=pytest.mark.slow)]
)
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
    for number in (before, held_out[-1]):
        Path(files.path(number)).write_text("This is no picture.")
    data = colour_folder(coloured, workers, "skip", tmp_path / "cache" if cached else None)
    split = data.with_validation(5)
    split.prepare()
    expected = [left[left.index(number) + 1] if number == before else number for number in left]
    assert numbers(training(split, 2, batch_size=19, shuffle=False)) == expected
    assert numbers(split.validation_batches(CPU)) == held_out[:-1]
    assert split.skipped == sorted(map(files.path, (before, held_out[-1])))
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

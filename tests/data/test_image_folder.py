"""Batches of image folders, and errors in folders and arguments."""

from __future__ import annotations

import itertools
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms import v2

from qat_ste.base.errors import ArgumentError
from qat_ste.data import image_folder
from qat_ste.data.crops import RandomCrops
from qat_ste.data.dataset import Shard
from qat_ste.data.image_batches import Normalise
from qat_ste.data.image_files import BrokenImageError, find_images
from qat_ste.data.imagenet import imagenet
from tests.data.images import CPU, same, training

FORMATS = {"gif": "GIF", "jfif": "JPEG", "jpeg": "JPEG", "jpg": "JPEG", "png": "PNG", "webp": "WEBP"}

# Content of batches


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_batches_do_not_depend_on_workers_ranks_or_restarts(real, tmp_path, monkeypatch, cached):
    monkeypatch.setattr(image_folder, "TEST_BATCH", 6)
    kept = {}
    for workers in (0, 2, 4):
        data = imagenet(real / "fullsize", 64, workers, cache=tmp_path if cached else None)
        data.prepare()
        assert data.train_batches(24, True, 7, CPU).steps_per_epoch == 4
        kept[workers] = (training(data, 4, 2, 24, 7), list(data.test_batches(CPU)))
        assert same(training(data, 1, 5, 24, 7), kept[workers][0][3:]), "restarted at step 5, in the second epoch"
    assert all(same(kept[0][part], kept[workers][part]) for workers in (2, 4) for part in (0, 1))
    images, labels = kept[0][0][0]
    assert (images.shape, images.dtype, labels.dtype) == ((24, 3, 64, 64), torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.cat([labels for _, labels in kept[0][1]]).tolist() == list(range(20)), "one of each class, in order"
    data.workers = 0
    for ranks in (2, 4):
        shards = [training(data, 2, 3, 24, 7, Shard(rank, ranks)) for rank in range(ranks)]
        assert same([tuple(torch.cat(parts) for parts in zip(*step)) for step in zip(*shards)], kept[0][0][1:3])
        parts = [list(data.test_batches(CPU, Shard(rank, ranks))) for rank in range(ranks)]
        assert same([part[0] for part in parts], kept[0][1][:ranks])
        assert sum(len(labels) for part in parts for _, labels in part) == 20


def test_crops_equal_those_of_torchvision_and_depend_on_seed_epoch_and_index(tiny):
    crops = RandomCrops(imagenet(tiny, 32, 0).train, 32, seed=3, skip=False)
    first, again, epoch, other = (crops([key]).images[0] for key in ((0, 5), (0, 5), (1, 5), (0, 6)))
    assert torch.equal(first, again)
    assert not torch.equal(first, epoch)
    assert not torch.equal(first, other)
    assert not torch.equal(first, RandomCrops(crops.source, 32, seed=4, skip=False)([(0, 5)]).images[0])
    assert torch.equal(first, crops([(0, 9), (0, 5)]).images[1]), "independent of the other images in the batch"
    compose = v2.Compose([v2.RandomResizedCrop(32, antialias=True), v2.RandomHorizontalFlip()])
    flips = 0
    for seed, index in itertools.product(range(10), range(16)):
        image = crops.source.read(index)
        torch.manual_seed(seed)
        ours = crops._augment(image)
        torch.manual_seed(seed)
        assert torch.equal(ours.permute(2, 0, 1), compose(image))
        torch.manual_seed(seed)
        place = v2.RandomResizedCrop(32).make_params([image])
        unflipped = v2.functional.resized_crop(image, **place, size=[32, 32])
        flips += not torch.equal(ours.permute(2, 0, 1), unflipped)
    assert 60 < flips < 100


def test_the_global_random_state_is_unchanged(tiny):
    for workers in (0, 2):
        before = torch.get_rng_state()
        data = imagenet(tiny, 32, workers)
        training(data, 2)
        list(data.test_batches(CPU))
        assert torch.equal(torch.get_rng_state(), before)


def test_test_images_equal_the_usual_torchvision_transforms(tiny):
    images, labels = next(iter(imagenet(tiny, 32, 0).test_batches(CPU)))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    usual = v2.Compose([
        v2.Resize(37), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])  # fmt: skip
    for image, path in zip(images, sorted((tiny / "val").glob("*/*")), strict=True):
        torch.testing.assert_close(image, usual(decode_image(str(path), "RGB")), rtol=1e-5, atol=1e-5)


def test_batches_in_use_are_not_overwritten_and_freed_memory_is_reused():
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, 8, CPU)
    black, white = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.full((2, 8, 8, 3), 255, dtype=torch.uint8)
    batch = normalise(black)
    part = batch[1]
    del batch
    other = normalise(white)
    assert (part == -1).all(), "while a view is referenced"
    places = {part.data_ptr() - 8 * 8 * 3 * 4, other.data_ptr()}
    del part, other
    assert {batch.data_ptr() for batch in [normalise(black), normalise(white)]} == places


def test_grey_cmyk_and_palette_images_become_rgb_and_16_bits_are_rejected(real, tiny):
    grey = imagenet(real / "fullsize", 64, 0).val
    assert all(image.shape[0] == 3 for image in map(grey.read, range(len(grey))))
    folder = tiny / "train" / "ant"
    picture = Image.open(folder / "1.JPEG")
    picture.convert("CMYK").save(folder / "1.JPEG")
    picture.convert("P").save(folder / "a.png")
    Image.new("I;16", (20, 20)).save(folder / "b.PNG")
    files = imagenet(tiny, 32, 0).train
    named = {files.path(index).rpartition("/")[2]: index for index in range(10)}
    assert files.read(named["1.JPEG"]).shape == files.read(named["a.png"]).shape == (3, 45, 56)
    with pytest.raises(BrokenImageError, match=r"b\.PNG is not a readable image \(3 dimensions of torch.uint16"):
        files.read(named["b.PNG"])


def test_file_order_wraps_around(tiny):
    data = imagenet(tiny, 32, 0)
    assert [labels.tolist() for _, labels in training(data, 3, batch_size=6, shuffle=False)] == [
        [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]  # fmt: skip


# Broken images


def broken(tiny: Path) -> tuple[Path, Path]:
    paths = tiny / "train" / "ant" / "1.JPEG", tiny / "val" / "bee" / "0.jpg"
    for path in paths:
        path.write_text("This is no picture.")
    return paths


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_broken_image_stops_with_its_path_and_the_remedy(tiny, tmp_path, workers, cached):
    path, _ = broken(tiny)
    data = imagenet(tiny, 32, workers, cache=tmp_path / "cache" if cached else None)
    with pytest.raises(BrokenImageError) as caught:
        data.prepare()
        training(data, 4)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a readable image (Unsupported image file.")
    assert message.endswith("repair or remove it, or set dataset.on_error=skip")
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_skipping_keeps_training_batches_full_and_shortens_the_test_set(tiny, tmp_path, caplog, workers, cached):
    whole = training(imagenet(tiny, 32, 0, cache=None), 4, shuffle=False)
    paths = broken(tiny)
    data = imagenet(tiny, 32, workers, "skip", tmp_path / "cache" if cached else None)
    with caplog.at_level(logging.WARNING):
        data.prepare()
        batches = training(data, 8, shuffle=False)
        tested = list(data.test_batches(CPU))
    assert all(len(labels) == 4 for _, labels in batches)
    assert [labels.tolist() for _, labels in tested] == [[0, 0, 0, 1, 1]]
    assert data.skipped == sorted(map(str, paths))
    assert sum(str(paths[0]) in record.getMessage() for record in caplog.records) == 1
    if not cached:
        assert (batches[0][0] == whole[0][0]).flatten(1).all(1).tolist() == [True, False, True, True]
        assert same(batches[1:4], whole[1:])


def test_a_folder_of_broken_images_is_an_error_even_if_skipping(tiny):
    for path in (tiny / "train").glob("*/*"):
        path.write_text("This is no picture.")
    with pytest.raises(ValueError, match="none of the 16 training images can be read; last error: .*JPEG"):
        training(imagenet(tiny, 32, 2, "skip"), 1)


# Folders and arguments


def test_errors_in_folders_are_named(tiny):
    with pytest.raises(
        ValueError, match=r"^/.*data/train/ant/0.jpg is not a readable image \(Expected a non empty file"
    ):
        (tiny / "train/ant/0.jpg").write_bytes(b"")
        imagenet(tiny, 32)
    imagenet(tiny, 32, on_error="skip")
    (tiny / "train/ant/0.jpg").unlink()
    for extra in ("wasp", "fly", "moth", "flea"):
        shutil.copytree(tiny / "val/bee", tiny / "val" / extra)
    with pytest.raises(ValueError, match=r"train has no images of 4 of the 6 classes of .*val: flea, fly, moth, …$"):
        imagenet(tiny, 32)
    shutil.rmtree(tiny / "val")
    with pytest.raises(FileNotFoundError, match="data has no folder val: expected val/<class>/"):
        imagenet(tiny, 32)
    (tiny / "val" / "ant").mkdir(parents=True)
    (tiny / "val" / "ant" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="data/val has no images: expected val/<class>/"):
        imagenet(tiny, 32)
    with pytest.raises(FileNotFoundError, match="nowhere has no folder train"):
        imagenet(tiny / "nowhere", 32)


def test_hidden_files_other_files_and_empty_folders_are_ignored(tiny):
    before = imagenet(tiny, 32)
    (tiny / "train" / "ant" / "._0.jpg").touch()
    (tiny / "train" / "ant" / "notes.txt").touch()
    (tiny / "train" / "cicada").mkdir()
    after = imagenet(tiny, 32)
    assert (after.num_classes, len(after.train), after.fingerprint) == (2, 16, before.fingerprint)
    (tiny / "val" / "ant" / "0.jpg").rename(tiny / "val" / "ant" / "00.jpg")
    assert imagenet(tiny, 32).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number from 1 to 2048, got 0"),
        ({"workers": -1}, "workers must be None or a whole number from 0 to 256, got -1"),
        ({"on_error": "ignore"}, "on_error must be one of stop, skip, got 'ignore'"),
    ],
)
def test_rejects_arguments_out_of_bounds(tiny, arguments, message):
    with pytest.raises(ArgumentError, match=f"^{message}$"):
        imagenet(tiny, **arguments)


def test_rejects_a_batch_larger_than_the_split(tiny):
    with pytest.raises(ArgumentError, match="batch_size must be from 1 to 16"):
        imagenet(tiny, 32).train_batches(17, True, 0, CPU)


def test_rejects_a_cache_on_a_full_disk(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 10_000))
    with pytest.raises(
        ValueError, match=rf"^cache needs about 1?\d\d,\d+ bytes, but only 10,000 are free at {tmp_path}$"
    ):
        imagenet(tiny, 32, cache=tmp_path / "not" / "yet")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_cuda_equal_those_on_the_cpu(tiny):
    data = imagenet(tiny, 32, 2)
    cuda = torch.device("cuda")
    on_gpu = itertools.islice(data.train_batches(4, True, 0, cuda).starting_at(0), 20)
    for (images, labels), (expected, wanted) in zip(on_gpu, training(data, 20), strict=True):
        torch.testing.assert_close(images.cpu(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(labels.cpu(), wanted)
    assert sum(len(labels) for _, labels in data.test_batches(cuda)) == 6


# Formats of files


@pytest.mark.parametrize("ending", ["gif", "jfif", "jpeg", "JPG", "png", "webp", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_what_torchvision_reads_is_used(tiny, ending, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(tiny / "train" / "ant" / f"0.{ending}", FORMATS[ending.lower()])
    files, _ = find_images(tiny)
    index = [files.path(number) for number in range(len(files))].index(f"{tiny}/train/ant/0.{ending}")
    assert files.read(index).shape == (3, 40, 50)


def test_the_first_frame_of_an_animated_gif_is_used(tiny):
    frames = [Image.new("RGB", (50, 40), color) for color in ("red", "blue")]
    frames[0].save(tiny / "train" / "ant" / "0.gif", save_all=True, append_images=frames[1:])
    files, _ = find_images(tiny)
    assert files.path(0).endswith("/0.gif")
    assert torch.equal(files.read(0), torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 40, 50))


def test_other_files_are_counted_in_one_warning(tiny, caplog):
    assert len(find_images(tiny)[0]) == 16
    assert not caplog.messages
    for name in (".hidden", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tiny / "train" / "ant" / name).touch()
    (tiny / "train" / "labels.csv").touch()  # not in the folder of a class
    find_images(tiny)
    assert not caplog.messages
    for split, kind, name in (("train", "ant", "a.bmp"), ("train", "bee", "b.BMP"), ("val", "bee", "c.tiff"),
                              ("val", "ant", "README"), ("train", "ant", "d.bmp")):  # fmt: skip
        (tiny / split / kind / name).touch()
    (tiny / "train" / "bee" / "more").mkdir()
    assert len(find_images(tiny)[0]) == 16
    (message,) = caplog.messages
    start, _, counts = message.partition(": 6 entries in the folders of classes are not used: 3 .bmp, ")
    assert start == str(tiny)
    assert sorted(counts.split(", ")) == ["1 .tiff", "1 folders", "1 without an ending"]
    caplog.clear()
    for number in range(9):
        (tiny / "val" / "ant" / f"x.e{number}").touch()
    find_images(tiny)
    (message,) = caplog.messages
    assert message.count(" 1 ") == 4 and message.endswith(", …")

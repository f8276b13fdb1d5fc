"""The cache of decoded images."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qat_ste.data.decoded_images import RECORD, DecodedImages, make_cache
from qat_ste.data.image_files import find_images
from qat_ste.data.imagenet import imagenet
from tests.data.images import CPU, same, training
from tests.strangers import damaged
from tests.watching import each


def content(folder: Path) -> dict[str, bytes | bool]:
    """Files by name; the content of lock files, which names a process, is ignored."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.suffix != ".lock" and path.read_bytes() for path in files}


@pytest.mark.slow
def test_cached_test_batches_are_bit_identical(real, tmp_path):
    for root, size in ((real / "fullsize", 64), (real / "fullsize", 224)):  # some images are smaller than 224
        cached = imagenet(root, size, 2, cache=tmp_path)
        cached.prepare()
        assert same(cached.test_batches(CPU), imagenet(root, size, 2).test_batches(CPU))


@pytest.mark.slow
def test_a_continued_cache_equals_one_made_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("qat_ste.data.decoded_images.CHUNK", 3)
    whole = tmp_path / "whole"
    imagenet(tiny, 32, 0, cache=whole).prepare()
    expected = content(whole)
    name = next(name for name in expected if name.startswith("train") and name.endswith("pixels")).partition("/")[0]
    for pixels, index in ((0, 0), (1, 999), (20_000, 999), (999_999, 57), (40_000, 140), (999_999, 999)):
        part = tmp_path / f"{pixels}-{index}" / f"{name}.part"
        part.mkdir(parents=True)
        (part / "pixels").write_bytes(expected[f"{name}/pixels"][:pixels])
        (part / "index").write_bytes(expected[f"{name}/index"][:index])
        imagenet(tiny, 32, 2, cache=part.parent).prepare()
        assert content(part.parent) == expected
    assert not list(tmp_path.rglob("*.part"))


def test_a_complete_cache_is_not_made_again(tiny, tmp_path):
    imagenet(tiny, 32, 0, cache=tmp_path / "cache").prepare()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    data = imagenet(tiny, 32, 0, cache=tmp_path / "cache")
    data.prepare()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before
    for path in tiny.rglob("*.JPEG"):
        path.write_bytes(bytes(path.stat().st_size))  # of equal size, to show that the images come from the cache
    training(data, 4)


def test_another_size_or_list_of_files_has_another_cache(tiny, tmp_path):
    for change in (lambda: 32, lambda: 40, lambda: (tiny / "train/ant/0.jpg").rename(tiny / "train/ant/x.jpg") and 32):
        before = content(tmp_path / "cache")
        imagenet(tiny, change(), 0, cache=tmp_path / "cache").prepare()
        after = content(tmp_path / "cache")
        assert before.items() < after.items()
        assert any("train" in name for name in after.keys() - before.keys())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_cache_is_rejected_by_name(tiny, tmp_path, workers):
    imagenet(tiny, 32, 0, cache=tmp_path).prepare()
    folder = next(path for path in tmp_path.glob("train-*") if path.is_dir())
    pixels, index = (folder / "pixels").read_bytes(), (folder / "index").read_bytes()
    for name, changed in (
        ("pixels", pixels[:5000] + bytes([pixels[5000] ^ 1]) + pixels[5001:]),
        ("pixels", pixels[:-1]),
        ("index", index[:-28]),
        ("index", index[:8] + bytes([index[8] ^ 1]) + index[9:]),
    ):
        (folder / name).unlink()  # workers of the previous round may have the file mapped
        (folder / name).write_bytes(changed)
        with pytest.raises(ValueError, match=rf"^{folder}/pixels is damaged \(.*\): delete {folder}$"):
            training(imagenet(tiny, 32, workers, cache=tmp_path), 4)
        (folder / name).unlink()
        (folder / name).write_bytes({"pixels": pixels, "index": index}[name])
    training(imagenet(tiny, 32, workers, cache=tmp_path), 4)


@pytest.mark.parametrize("name", ["pixels", "index"])
def test_a_cache_with_a_missing_file_is_rejected_by_name(tiny, tmp_path, name):
    imagenet(tiny, 32, 0, cache=tmp_path).prepare()
    folder = next(path for path in tmp_path.glob("train-*") if path.is_dir())
    (folder / name).unlink()
    with pytest.raises(
        ValueError, match=rf"^{folder}/pixels is damaged \(No such file or directory\): delete {folder}$"
    ):
        training(imagenet(tiny, 32, 0, cache=tmp_path), 1)


def test_rejects_wrong_sizes_with_the_right_sum(tiny, tmp_path):
    imagenet(tiny, 32, 0, cache=tmp_path).prepare()
    folder = next(path for path in tmp_path.glob("train-*") if path.is_dir())
    good = np.fromfile(folder / "index", RECORD)
    for height, width in ((0, 5), (2**31, 2**32 - 1)):
        index = good.copy()
        index[1] = (index[1]["offset"], height, width, 0, index[1]["encoded_bytes"])
        ends = np.cumsum(3 * index["height"].astype(np.uint64) * index["width"])
        index["offset"][1:] = ends[:-1]
        index.tofile(folder / "index")
        (folder / "pixels").open("ab").truncate(min(int(ends[-1]), 2**30))
        with pytest.raises(ValueError, match="its files are inconsistent"):
            training(imagenet(tiny, 32, 0, cache=tmp_path), 1)


def test_damage_never_leads_to_wrong_pixels(real, tmp_path):
    """Index or pixels are missing, truncated or have flipped bits; then every image is read."""
    for split in ("train", "val"):
        for path in sorted((real / "val").glob("*/*.JPEG"))[::42]:
            (tmp_path / split / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / split / path.parent.name)
    _, files = find_images(tmp_path)
    cache, draw = tmp_path / "cache", random.Random(0)
    make_cache(cache, files, 32, 0, None)
    expected = [DecodedImages(cache, files).read(index).clone() for index in range(len(files))]
    good = {name: (cache / name).read_bytes() for name in ("pixels", "index")}

    def read(given: tuple[str, bytes | None]) -> str:
        name, content = given
        for file, whole in good.items():
            (cache / file).unlink(missing_ok=True)  # a new file, since the old one may be mapped
            if file != name or content is not None:
                (cache / file).write_bytes(content if file == name else whole)
        cached = DecodedImages(cache, files)
        assert all(torch.equal(cached.read(index), image) for index, image in enumerate(expected)), "wrong pixels"
        return "no harm"

    def documented(error: Exception) -> bool:
        lines = str(error).splitlines()
        named = isinstance(error, ValueError) and len(lines) == 1 and f"delete {cache}" in lines[0]
        return named or "delete that folder" in str(error)

    def contents() -> Iterator[tuple[str, bytes | None]]:
        yield from itertools.product(good, (None, b""))
        for name in ("pixels", "index") * 200:
            flipped = bytearray(good[name])
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            yield name, draw.choice((good[name][: draw.randrange(len(flipped))], damaged(good[name], draw), flipped))

    assert each(contents(), read, documented)[1] == []


def test_rejects_a_cache_of_changed_files(tiny, tmp_path):
    imagenet(tiny, 32, 0, cache=tmp_path).prepare()
    shutil.copy(tiny / "train/ant/3.JPEG", tiny / "train/ant/1.JPEG")
    with pytest.raises(ValueError, match=r"was made from another version of .*ant/1\.JPEG: delete that folder$"):
        training(imagenet(tiny, 32, 0, cache=tmp_path), 1)


def prepare(root: Path, cache: Path) -> None:
    imagenet(root, 32, 2, cache=cache).prepare()


def test_processes_make_one_cache_together(tiny, tmp_path):
    prepare(tiny, tmp_path / "alone")
    makers = [multiprocessing.Process(target=prepare, args=(tiny, tmp_path / "both")) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert content(tmp_path / "both") == content(tmp_path / "alone")


@pytest.mark.slow
def test_a_cache_is_continued_after_its_process_was_killed(real, tmp_path):
    prepare(real, tmp_path / "whole")
    script = f"from tests.data.test_decoded_images import prepare, Path; prepare(Path({str(real)!r}), Path({str(tmp_path)!r}) / 'cut')"
    for pause in (0.0, 0.05, 0.3):
        maker = subprocess.Popen([sys.executable, "-c", script])
        while not list(tmp_path.glob("cut/*.part")) and maker.poll() is None:
            time.sleep(0.01)
        time.sleep(pause)
        maker.kill()
        assert maker.wait() in (0, -signal.SIGKILL), "neither finished nor killed"
    prepare(real, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")

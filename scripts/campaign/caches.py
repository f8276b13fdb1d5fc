"""Damaged caches of images, and MNIST files: told in one line that names what to delete, never wrong pixels."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .fault import Fault, Outcome
from .strangers import damaged
from .watching import each

SHARED = Path(os.environ.get("QAT_STE_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"


@dataclass(frozen=True)
class CachedImages:
    """Index or pixels cut at any length, or with flipped bits; then every image is read for the first time."""

    name: str = "damaged cache of images"
    group: str = "storage"
    rounds: int = 5
    inputs: int = 400
    images: int = 12

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        import torch

        from qat_ste.data.decoded_images import DecodedImages, make_cache
        from qat_ste.data.image_files import find_images

        for split in ("train", "val"):
            for path in sorted((SHARED / "imagenet-sample" / "val").glob("*/*.JPEG"))[:: 507 // self.images]:
                (workplace / split / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, workplace / split / path.parent.name)
        _, files = find_images(workplace)
        cache = workplace / "cache"
        make_cache(cache, files, 32, 0, None)
        expected = [DecodedImages(cache, files).read(index).clone() for index in range(len(files))]
        good = {name: (cache / name).read_bytes() for name in ("pixels", "index")}

        def read(given: tuple[str, bytes]) -> str:
            name, content = given
            for file, whole in good.items():
                (cache / file).unlink(missing_ok=True)  # another file: the old one may be mapped
                if file != name or content != b"gone":
                    (cache / file).write_bytes(content if file == name else whole)
            cached = DecodedImages(cache, files)
            for index, image in enumerate(expected):
                if not torch.equal(cached.read(index), image):
                    raise AssertionError("wrong pixels")
            return "no harm"

        def stated(error: Exception) -> bool:
            told = str(error)
            return (
                isinstance(error, ValueError) and len(told.splitlines()) == 1 and f"delete {cache}" in told
            ) or "delete that folder" in told

        def contents() -> Iterator[tuple[str, bytes]]:
            yield from (("pixels", b"gone"), ("index", b"gone"), ("index", b""), ("pixels", b""))
            for number in range(self.inputs):
                name = ("pixels", "index")[number % 2]
                cut = good[name][: draw.randrange(len(good[name]))]
                yield name, draw.choice((cut, damaged(good[name], draw), _flipped(good[name], draw)))

        return each(contents(), read, stated)


@dataclass(frozen=True)
class MnistFiles:
    """One of the four files cut or flipped."""

    name: str = "damaged MNIST files"
    group: str = "storage"
    rounds: int = 2
    inputs: int = 25

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        from qat_ste.data.mnist import FILES, mnist

        raw = SHARED / "mnist" / "MNIST" / "raw"
        for name in FILES:
            shutil.copy(raw / f"{name}.gz", workplace)

        def read(given: tuple[str, bytes]) -> str:
            name, content = given
            (workplace / name).write_bytes(content)
            try:
                mnist(workplace, download=False)
            finally:
                shutil.copy(raw / name, workplace)
            return "as it was" if content == (raw / name).read_bytes() else "taken"

        def contents() -> Iterator[tuple[str, bytes]]:
            for _ in range(self.inputs):
                name = f"{draw.choice(list(FILES))}.gz"
                content = (raw / name).read_bytes()
                make: Callable[[], bytes] = draw.choice(
                    (lambda c=content: c[: draw.randrange(len(c))], lambda c=content: _flipped(c, draw))
                )  # type: ignore[misc]
                yield name, make()

        outcome = each(contents(), read, lambda error: isinstance(error, ValueError) and "is damaged" in str(error))
        if outcome.counts.get("taken"):
            outcome.broken.append("damaged images were taken")
        return outcome


def _flipped(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


CACHES: tuple[Fault, ...] = (CachedImages(), MnistFiles())

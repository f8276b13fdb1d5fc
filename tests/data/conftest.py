from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.io import write_jpeg

from tests.conftest import shared

SIZES = {"ant": 23, "bee": 15, "fly": 4, "moth": 1}  # training images of each class


@pytest.fixture
def real() -> Path:
    return shared("data/imagenet-sample", "a few real ImageNet images")


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Two classes of 8 training and 3 test images each, of different sizes; one image per class and split is grey."""
    generator = torch.Generator().manual_seed(0)
    for (split, count), kind in itertools.product((("train", 8), ("val", 3)), ("ant", "bee")):
        folder = tmp_path / "data" / split / kind
        folder.mkdir(parents=True)
        for number in range(count):
            channels = 1 if number == 2 else 3
            size = (channels, 40 + 5 * number, 60 - 4 * number)
            image = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
            write_jpeg(image, str(folder / f"{number}.{'JPEG' if number % 2 else 'jpg'}"))
    return tmp_path / "data"


@pytest.fixture
def coloured(tmp_path) -> Path:
    """Images of one colour each, which their crops show too; their number, in file order, is a quarter of the red value."""
    number = 0
    for split, sizes in (("train", SIZES), ("val", dict.fromkeys(SIZES, 2))):
        for kind, size in sizes.items():
            folder = tmp_path / "data" / split / kind
            folder.mkdir(parents=True)
            for place in range(size):
                Image.new("RGB", (40, 50), (number * 4, 100, 255 - number)).save(folder / f"{place:02d}.png")
                number += 1
    return tmp_path / "data"

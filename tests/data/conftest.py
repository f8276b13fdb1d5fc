from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torchvision.io import write_jpeg

from tests.conftest import shared


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

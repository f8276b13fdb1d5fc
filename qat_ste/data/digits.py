"""scikit-learn's 1,797 real handwritten digits, 8x8 pixels; nothing to download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from qat_ste.data.in_memory import InMemoryDataset, Split


def digits() -> InMemoryDataset:
    """1,437 images for training and 360 for testing, pixels in [0, 1]; one split for all seeds.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """
    package = find_spec("sklearn")  # whose load_digits takes a second to import, and reads this file as we do
    assert package is not None and package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(pixels).float() / 16).reshape(-1, 1, 8, 8)[order]
    targets = torch.from_numpy(labels).long()[order]
    return InMemoryDataset(Split(images[:1437], targets[:1437]), Split(images[1437:], targets[1437:]), num_classes=10)

"""The 1,797 handwritten digits (8x8 pixels) that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from qat_ste.data.in_memory import InMemoryDataset, Split


def digits() -> InMemoryDataset:
    """1,437 training and 360 test images, pixels in [0, 1]; the split is the same for all seeds.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
    """
    package = find_spec("sklearn")
    path = Path(package.origin if package and package.origin else "").parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():  # reading the file takes a second less than importing scikit-learn
        table = np.loadtxt(path, delimiter=",")
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(pixels).float() / 16).reshape(-1, 1, 8, 8)[order]
    targets = torch.from_numpy(labels).long()[order]
    train, test = Split(images[:1437], targets[:1437]), Split(images[1437:], targets[1437:])
    return InMemoryDataset(train, test, num_classes=10, held_out=287)

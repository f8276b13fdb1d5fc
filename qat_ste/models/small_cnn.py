"""The default network: small enough for a comparison in a minute on two cores."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from qat_ste.models.initialization import he_uniform_


def small_cnn(
    in_channels: int = 1, image_size: int = 8, num_classes: int = 10, channels: Sequence[int] = (32, 64)
) -> nn.Module:
    """Two 3x3 convolutions with ReLU, 2x2 max-pooling, a dense layer; for square images.

    Raises:
        ValueError: ``channels`` are not those of two convolutions.
    """
    if len(channels) != 2 or min(channels) < 1:
        raise ValueError(f"channels must be two whole numbers of at least 1, got {list(channels)}")
    first, second = channels
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, first, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(first, second, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(second * ((image_size - 4) // 2) ** 2, num_classes),
        )
    )
    return he_uniform_(model, biases=False)

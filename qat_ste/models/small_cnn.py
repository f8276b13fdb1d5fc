"""The default network, small enough for a comparison within a minute on two CPU cores."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from qat_ste.models.initialization import he_uniform_


def small_cnn(in_channels: int = 1, image_size: int = 8, num_classes: int = 10) -> nn.Module:
    """Two 3x3 convolutions (32, 64) with ReLU, 2x2 max pooling, a dense layer; for square images."""
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(64 * ((image_size - 4) // 2) ** 2, num_classes),
        )
    )
    return he_uniform_(model, biases=False)

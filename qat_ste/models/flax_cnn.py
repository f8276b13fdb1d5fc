"""The network of the paper's "flax" MNIST set-up."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from qat_ste.models.initialization import he_uniform_


def flax_cnn(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Two blocks of 3x3 same convolution (32, 64), ReLU, 2x2 average pooling; dense 256, ReLU, dense; 28x28 images."""
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3, padding="same"),
            relu1=nn.ReLU(),
            pool1=nn.AvgPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding="same"),
            relu2=nn.ReLU(),
            pool2=nn.AvgPool2d(2),
            flatten=nn.Flatten(),
            dense1=nn.Linear(64 * 7 * 7, 256),
            relu3=nn.ReLU(),
            dense2=nn.Linear(256, num_classes),
        )
    )
    return he_uniform_(model, biases=False)

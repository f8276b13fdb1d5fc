"""The network of the paper's "keras" MNIST set-up."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from qat_ste.models.initialization import he_uniform_
from qat_ste.models.layout import ChannelsLast


def keras_cnn(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Three blocks of 3x3 valid convolution (32, 64, 128), ReLU, 2x2 max pooling, then a dense layer; 28x28 images.

    ReLU follows the pooling, where it has a quarter of the work; values and gradients are the same, since ReLU and
    maximum commute. Biases of the convolutions are drawn like their kernels (arXiv 2405.05171, MNIST experiments).
    """
    model = nn.Sequential(
        OrderedDict(
            layout=ChannelsLast(),
            conv1=nn.Conv2d(in_channels, 32, 3),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 128, 3),
            pool3=nn.MaxPool2d(2),
            relu3=nn.ReLU(),
            flatten=nn.Flatten(),
            dense=nn.Linear(128, num_classes),
        )
    )
    return he_uniform_(model, biases=True)

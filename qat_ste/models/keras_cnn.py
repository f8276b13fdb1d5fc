"""The network of the paper's "keras" MNIST set-up."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from qat_ste.models.initialization import he_uniform_


def keras_cnn(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Three times 3x3 valid convolution (32, 64, 128), ReLU, 2x2 max-pooling, then a dense layer; 28x28 images.

    Biases of the convolutions are drawn like their kernels (arXiv 2405.05171, MNIST experiments).
    """
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 32, 3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(64, 128, 3),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(128, num_classes),
        )
    )
    return he_uniform_(model, biases=True)

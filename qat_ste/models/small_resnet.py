"""A small residual network with batch norm, in which whole runs drift apart whatever one does."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from qat_ste.models.initialization import he_uniform_


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return out.relu()


def small_resnet(in_channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels after a 3x3 convolution; for images of any size."""
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False),
            bn=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            block1=Block(16, 16, 1),
            block2=Block(16, 32, 2),
            block3=Block(32, 64, 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dense=nn.Linear(64, num_classes),
        )
    )
    return he_uniform_(model, biases=False)

"""What a data set asks of a model: its inputs, its outputs and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """The task of a data set.

    Attributes:
        inputs, targets: an example batch of two. Outputs have one more dimension than targets: the classes, last.
        num_classes: the model may return more.
        model_arguments: facts about the data, passed to models that have an argument of this name.
        loss: (outputs, targets) -> scalar.
        described: the inputs in words, for messages.
    """

    inputs: Tensor
    targets: Tensor
    num_classes: int
    model_arguments: Mapping[str, int]
    loss: Callable[[Any, Tensor], Tensor]
    described: str

    def accepts(self, outputs: object) -> bool:
        """Whether the loss accepts these outputs of the example batch."""
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return False
        *shape, classes = outputs.shape or (0,)
        return tuple(shape) == self.targets.shape and classes >= self.num_classes


def task_of(dataset: Any) -> Task:
    """The task that a data set has as its ``task``; without one, to classify images."""
    if hasattr(dataset, "task"):
        return dataset.task
    channels, height, width = dataset.image_shape
    classes = dataset.num_classes
    return Task(
        inputs=torch.zeros(2, channels, height, width),
        targets=torch.zeros(2, dtype=torch.long),
        num_classes=classes,
        model_arguments={"in_channels": channels, "image_size": width, "num_classes": classes},
        loss=F.cross_entropy,
        described=f"images of {channels}x{height}x{width}",
    )


def bits_per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of next tokens in bits; where tokens are bytes, in bits per byte.

    This is the loss in nats divided by ln 2. Adam and Muon ignore the factor; clipping does not: a norm of 1 in nats is
    one of 1.443 here.

    Args:
        outputs: logits, ... x vocabulary.
        targets: the next tokens, ...
    """
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten()) / math.log(2)

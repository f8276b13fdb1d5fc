"""The classification networks of torchvision, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from qat_ste.base.errors import ArgumentError, OneOf, require
from qat_ste.models.initialization import he_uniform_

INITIALIZATIONS = ("he_uniform", "torchvision")


def torchvision_model(
    name: str = "resnet50", initialization: str = "he_uniform", image_size: int = 224, num_classes: int = 1000
) -> nn.Module:
    """Builds a network of ``torchvision.models`` without pretrained weights and without auxiliary outputs.

    Args:
        name: name in torchvision: resnet18, mobilenet_v2, vit_b_16, …
        initialization: ``he_uniform``: convolutions and dense layers fill the quantizer's range (arXiv 2405.05171);
            ``torchvision``: torchvision's default.

    Raises:
        ArgumentError: there is no such network or initialization.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ArgumentError("name", name, "a torchvision network such as resnet18, mobilenet_v2 or vit_b_16")
    require(OneOf(INITIALIZATIONS), initialization=initialization)
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if name.startswith("vit"):  # the size of their position embedding depends on it
        arguments["image_size"] = image_size
    elif name.startswith("maxvit"):
        arguments["input_size"] = (image_size, image_size)
    elif name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": initialization == "torchvision"}
    model: nn.Module = models.get_model(name, weights=None, **arguments)
    return he_uniform_(model, biases=False) if initialization == "he_uniform" else model

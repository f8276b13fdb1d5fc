"""Any of torchvision's classification networks, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from qat_ste.models.initialization import he_uniform_

INITIALIZATIONS = ("he_uniform", "torchvision")


def torchvision_model(
    name: str = "resnet50", initialization: str = "he_uniform", image_size: int = 224, num_classes: int = 1000
) -> nn.Module:
    """A network of ``torchvision.models``, without pretrained weights.

    Args:
        name: as torchvision has it: resnet18, mobilenet_v2, vit_b_16, …
        initialization: ``he_uniform``: convolutions and dense layers fill the quantizer's range (arXiv 2405.05171);
            ``torchvision``: as torchvision draws them.

    Raises:
        ValueError: no such network or initialization.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"name must be a torchvision network such as resnet18, mobilenet_v2 or vit_b_16, got {name!r}")
    if initialization not in INITIALIZATIONS:
        raise ValueError(f"initialization must be one of {', '.join(INITIALIZATIONS)}, got {initialization!r}")
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if "vit" in name:  # their position embedding has the size of the image
        arguments["image_size"] = image_size
    model: nn.Module = models.get_model(name, weights=None, **arguments)
    return he_uniform_(model, biases=False) if initialization == "he_uniform" else model

"""He-uniform initial weights as in arXiv 2405.05171, which fill the quantizer's range exactly."""

from __future__ import annotations

import torch
from torch import nn

from qat_ste.quantizers.scales import he_uniform_bound


@torch.no_grad()
def he_uniform_(model: nn.Module, biases: bool) -> nn.Module:
    """Draws the weights of convolutions and dense layers from U(-b, b) with b = √(6 / fan_in), in place.

    With ``biases``, biases of convolutions are drawn likewise; all others are set to zero. Other layers do not change.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name != "bias" or (biases and isinstance(module, nn.Conv2d)):
                bound = he_uniform_bound(parameter)
                parameter.uniform_(-bound, bound)
            else:
                parameter.zero_()
    return model

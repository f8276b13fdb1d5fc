"""He-uniform initial weights, as in arXiv 2405.05171: they fill the quantizer's range exactly."""

from __future__ import annotations

import torch
from torch import nn

from qat_ste.fake_quantize import he_uniform_bound


@torch.no_grad()
def he_uniform_(model: nn.Module, biases: bool) -> nn.Module:
    """Draws weights from U(-b, b) with b = √(6 / fan_in), in place; biases of convolutions likewise, or zero."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name != "bias" or (biases and isinstance(module, nn.Conv2d)):
                bound = he_uniform_bound(parameter)
                parameter.uniform_(-bound, bound)
            else:
                parameter.zero_()
    return model

"""Arguments of ``compare`` by the names of their fields, sorted into parameter objects."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from qat_ste import Execution, Metrics, Quantization, Training, quantize_weights
from qat_ste.estimators import Estimator
from qat_ste.quantizers.scales import he_uniform_bound

KINDS = {"quantization": Quantization, "training": Training, "metrics": Metrics, "execution": Execution}
WEIGHTED = [_ConvNd, nn.Linear]
WEIGHTS = Quantization(include=WEIGHTED)


def sorted_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """``steps=5, bits=3`` as ``training=Training(steps=5), quantization=Quantization(bits=3)``; seed 0, all weights."""
    left = {"include": WEIGHTED, "seed": 0, "device": "cpu"} | arguments
    objects = {}
    for name, kind in KINDS.items():
        if isinstance(left.get(name), kind):
            continue
        objects[name] = kind(**{each.name: left.pop(each.name) for each in fields(kind) if each.name in left})
    return left | objects


def quantized(model: nn.Module, estimator: Estimator, max: Any = he_uniform_bound, **settings: Any) -> nn.Module:
    """``quantize_weights`` with all convolutions and linear layers, unless told otherwise."""
    return quantize_weights(model, Quantization(**({"include": WEIGHTED} | settings)), estimator, max=max)

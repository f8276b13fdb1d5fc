"""Does the choice of gradient estimator matter? Custom estimators against the STE, in lockstep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat_ste import estimators
    from qat_ste.experiment.card_of import card_of
    from qat_ste.experiment.checkpoint import Checkpoints
    from qat_ste.experiment.comparison import Comparison, compare
    from qat_ste.experiment.execution import Execution
    from qat_ste.experiment.gradient_update import Clipping, L2Penalty, WeightDecay
    from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors, remove_quantizers
    from qat_ste.quantizers.grids import GridQuantizer
    from qat_ste.quantizers.quantizer import UniformQuantizer
    from qat_ste.theory.equivalence import SteEquivalent

__version__ = "0.1.0"

_HOME = {
    "Checkpoints": "experiment.checkpoint",
    "Clipping": "experiment.gradient_update",
    "Comparison": "experiment.comparison",
    "Execution": "experiment.execution",
    "GridQuantizer": "quantizers.grids",
    "L2Penalty": "experiment.gradient_update",
    "SteEquivalent": "theory.equivalence",
    "UniformQuantizer": "quantizers.quantizer",
    "WeightDecay": "experiment.gradient_update",
    "card_of": "experiment.card_of",
    "compare": "experiment.comparison",
    "estimators": "estimators",
    "quantize_weights": "fake_quant.fake_quantize",
    "quantized_tensors": "fake_quant.fake_quantize",
    "remove_quantizers": "fake_quant.fake_quantize",
}
__all__ = [
    "Checkpoints",
    "Clipping",
    "Comparison",
    "Execution",
    "GridQuantizer",
    "L2Penalty",
    "SteEquivalent",
    "UniformQuantizer",
    "WeightDecay",
    "card_of",
    "compare",
    "estimators",
    "quantize_weights",
    "quantized_tensors",
    "remove_quantizers",
]


def __getattr__(name: str) -> Any:
    """Imports on first use: the command shows its help without importing torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name]}")
    return module if name == "estimators" else getattr(module, name)

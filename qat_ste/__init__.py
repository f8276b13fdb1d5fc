"""Does the choice of gradient estimator matter? Custom estimators against the STE, in lockstep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat_ste import estimators
    from qat_ste.checkpoint import Checkpoints
    from qat_ste.clipping import Clipping
    from qat_ste.comparison import Comparison, compare
    from qat_ste.decay import L2Penalty, WeightDecay
    from qat_ste.equivalence import SteEquivalent
    from qat_ste.execution import Execution
    from qat_ste.fake_quantize import quantize_weights, quantized_tensors, remove_quantizers
    from qat_ste.grid import GridQuantizer
    from qat_ste.inspection import card_of
    from qat_ste.quantizer import UniformQuantizer

__version__ = "0.1.0"

_HOME = {
    "Checkpoints": "checkpoint",
    "Clipping": "clipping",
    "Comparison": "comparison",
    "Execution": "member",
    "GridQuantizer": "grid",
    "L2Penalty": "decay",
    "SteEquivalent": "equivalence",
    "UniformQuantizer": "quantizer",
    "WeightDecay": "decay",
    "card_of": "inspection",
    "compare": "comparison",
    "estimators": "estimators",
    "quantize_weights": "fake_quantize",
    "quantized_tensors": "fake_quantize",
    "remove_quantizers": "fake_quantize",
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

"""Does the choice of gradient estimator matter? Custom estimators against the STE, trained in lockstep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qat_ste import estimators
    from qat_ste.base.errors import ArgumentError
    from qat_ste.base.grid_sections import Tuning
    from qat_ste.base.sections import CheckpointSchedule, Execution, Metrics, Quantization, Training
    from qat_ste.experiment.card_of import card_of
    from qat_ste.experiment.checkpoint import Checkpoints
    from qat_ste.experiment.comparison import Comparison, compare
    from qat_ste.experiment.gradient_update import Clipping, L2Penalty, WeightDecay
    from qat_ste.experiment.pretraining import pretrain
    from qat_ste.experiment.results import CounterpartResult, MemberResult
    from qat_ste.experiment.tuning import TunedStudy, tune
    from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors, remove_quantizers
    from qat_ste.models.checkpoint_file import load_checkpoint
    from qat_ste.quantizers.grids import GridQuantizer
    from qat_ste.quantizers.quantizer import UniformQuantizer
    from qat_ste.theory.equivalence import SteEquivalent

__version__ = "0.1.0"

_HOME = {
    "ArgumentError": "base.errors",
    "CheckpointSchedule": "base.sections",
    "Checkpoints": "experiment.checkpoint",
    "Clipping": "experiment.gradient_update",
    "Comparison": "experiment.comparison",
    "CounterpartResult": "experiment.results",
    "Execution": "base.sections",
    "GridQuantizer": "quantizers.grids",
    "L2Penalty": "experiment.gradient_update",
    "MemberResult": "experiment.results",
    "Metrics": "base.sections",
    "Quantization": "base.sections",
    "SteEquivalent": "theory.equivalence",
    "Training": "base.sections",
    "TunedStudy": "experiment.tuning",
    "Tuning": "base.grid_sections",
    "UniformQuantizer": "quantizers.quantizer",
    "WeightDecay": "experiment.gradient_update",
    "card_of": "experiment.card_of",
    "compare": "experiment.comparison",
    "estimators": "estimators",
    "pretrain": "experiment.pretraining",
    "load_checkpoint": "models.checkpoint_file",
    "quantize_weights": "fake_quant.fake_quantize",
    "quantized_tensors": "fake_quant.fake_quantize",
    "remove_quantizers": "fake_quant.fake_quantize",
    "tune": "experiment.tuning",
}
__all__ = [
    "ArgumentError",
    "CheckpointSchedule",
    "Checkpoints",
    "Clipping",
    "Comparison",
    "CounterpartResult",
    "Execution",
    "GridQuantizer",
    "L2Penalty",
    "MemberResult",
    "Metrics",
    "Quantization",
    "SteEquivalent",
    "Training",
    "TunedStudy",
    "Tuning",
    "UniformQuantizer",
    "WeightDecay",
    "card_of",
    "compare",
    "estimators",
    "load_checkpoint",
    "pretrain",
    "quantize_weights",
    "quantized_tensors",
    "remove_quantizers",
    "tune",
]


def __getattr__(name: str) -> object:
    """Imports on first use: the command shows its help without importing torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name]}")
    return module if name == "estimators" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__

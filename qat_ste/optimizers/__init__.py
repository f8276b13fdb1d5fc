"""Optimizers that torch lacks, one class per file, and the adjustment that each optimizer needs for the equivalence."""

from qat_ste.optimizers.adjustment import Adjustment, Equivalence
from qat_ste.optimizers.keras_sgd import KerasSGD
from qat_ste.optimizers.known import KNOWN, adjustment_of
from qat_ste.optimizers.lion import Lion
from qat_ste.optimizers.muon import Muon
from qat_ste.optimizers.probe import MakeOptimizer, probe
from qat_ste.optimizers.sign_sgd import SignSGD

__all__ = [
    "KNOWN", "Adjustment", "Equivalence", "KerasSGD", "Lion", "MakeOptimizer", "Muon", "SignSGD", "adjustment_of",
    "probe",
]  # fmt: skip

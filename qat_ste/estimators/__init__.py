"""Gradient estimators; one class a file."""

from qat_ste.estimators.base import Estimator
from qat_ste.estimators.pwl import Pwl
from qat_ste.estimators.ste import Ste
from qat_ste.estimators.tanh import Tanh

__all__ = ["Estimator", "Pwl", "Ste", "Tanh"]

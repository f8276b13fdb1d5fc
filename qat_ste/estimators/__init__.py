"""Gradient estimators, one class per file."""

from qat_ste.estimators.acos import Acos
from qat_ste.estimators.approx_sign import ApproxSign
from qat_ste.estimators.arctan import Arctan
from qat_ste.estimators.base import Estimator
from qat_ste.estimators.box import Box
from qat_ste.estimators.cosine import Cosine
from qat_ste.estimators.dsq import Dsq
from qat_ste.estimators.ede import Ede
from qat_ste.estimators.ewgs import Ewgs
from qat_ste.estimators.exp import Exp
from qat_ste.estimators.fast_sigmoid import FastSigmoid
from qat_ste.estimators.formula import Formula
from qat_ste.estimators.gauss import Gauss
from qat_ste.estimators.gauss_smooth import GaussSmooth
from qat_ste.estimators.laplace import Laplace
from qat_ste.estimators.mad import Mad
from qat_ste.estimators.parabola import Parabola
from qat_ste.estimators.power import Power
from qat_ste.estimators.pwl import Pwl
from qat_ste.estimators.rbnn import Rbnn
from qat_ste.estimators.reste import Reste
from qat_ste.estimators.scaled import Scaled
from qat_ste.estimators.sigmoid_sum import SigmoidSum
from qat_ste.estimators.stable_qat import StableQat
from qat_ste.estimators.stacked_sigmoid import StackedSigmoid
from qat_ste.estimators.ste import Ste
from qat_ste.estimators.swish_sign import SwishSign
from qat_ste.estimators.tanh import Tanh
from qat_ste.estimators.tanh_floor import TanhFloor
from qat_ste.estimators.tent import Tent
from qat_ste.estimators.xnor import Xnor

__all__ = [
    "Acos",
    "ApproxSign",
    "Arctan",
    "Box",
    "Cosine",
    "Dsq",
    "Ede",
    "Estimator",
    "Ewgs",
    "Exp",
    "FastSigmoid",
    "Formula",
    "Gauss",
    "GaussSmooth",
    "Laplace",
    "Mad",
    "Parabola",
    "Power",
    "Pwl",
    "Rbnn",
    "Reste",
    "Scaled",
    "SigmoidSum",
    "StableQat",
    "StackedSigmoid",
    "Ste",
    "SwishSign",
    "Tanh",
    "TanhFloor",
    "Tent",
    "Xnor",
]

"""Base class of gradient estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from qat_ste.quantizers.quantizer import Quantizer


class Estimator(ABC):
    """Surrogate derivative g of the quantizer: the backward pass multiplies the incoming gradient by g(w).

    A subclass defines ``shape``; training, figures and the equivalence need no more, since α and M are integrated
    numerically. The optional ``integral`` makes the weight map faster and exact.

    Attributes:
        not_covered: why the theorem does not cover an estimator although it has an α and an M.
    """

    not_covered: str | None = None

    @abstractmethod
    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        """g in one interval between two levels, as a function of the offset u in [-1/2, 1/2].

        u is the signed distance from the threshold over the width of the interval; g has its shape and dtype.
        """

    def integral(self, u: Tensor, quantizer: Quantizer) -> Tensor | None:
        """∫ ds/g(s) from 0 to u in closed form, or None without one; u is in float64.

        Called only if the theorem applies, so g > 0.
        """
        return None

    def primitive(self, u: Tensor, quantizer: Quantizer) -> Tensor | None:
        """The soft quantizer in one interval, ∫ g(s) ds from 0 to u in closed form, or None without one."""
        return None

    def check(self, quantizer: Quantizer) -> None:
        """Raises ValueError if the estimator does not support this quantizer."""

    @property
    def stages(self) -> tuple[Estimator, ...]:
        """The estimators that training uses in turn, each for an equal share of the steps."""
        return (self,)

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        """g(w) elementwise, zero where the quantizer's ``saturation`` stops the gradient; shape and dtype of ``w``."""
        return quantizer.gradient_mask(w).mul_(self.shape(quantizer.offset(w), quantizer))

    def backward(self, gradient: Tensor, w: Tensor, quantizer: Quantizer) -> Tensor:
        """Gradient of the latent weights ``w``, given that of the quantized weights; shape of ``w``."""
        return gradient * self.derivative(w, quantizer)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _equal(vars(self), vars(other))

    def __hash__(self) -> int:
        return hash(repr(self))


def _equal(a: Any, b: Any) -> bool:
    """Compares attributes; tensors are equal if all their elements are."""
    if a is b:
        return True
    if type(a) is not type(b):
        return bool(a == b) if not (isinstance(a, Tensor) or isinstance(b, Tensor)) else False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)

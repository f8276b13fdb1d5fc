"""Rotation of weights before they are quantized."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError


@dataclass(frozen=True)
class Rotation:
    """Multiplies each block of ``size`` consecutive weights by the orthogonal matrix H/√size, H Sylvester's Hadamard
    matrix (QuEST, arXiv 2502.05003; Quartet, arXiv 2505.14669). It is its own inverse.

    Args:
        size: a power of two.
    """

    size: int

    @classmethod
    def of(cls, size: int | None, w: Tensor) -> Rotation | None:
        """The rotation of one tensor along all dimensions but the first; None for a bias or without ``size``.

        Raises:
            ArgumentError: the size does not divide the weights of a channel.
        """
        if size is None or w.ndim < 2:
            return None
        per_channel = w.numel() // len(w)
        if per_channel % size:
            largest = per_channel & -per_channel
            allowed = f"a power of two that divides {per_channel}, the weights of a channel (at most {largest})"
            raise ArgumentError("rotation", size, allowed)
        return cls(size)

    def __call__(self, w: Tensor) -> Tensor:
        """The rotated weights, in the shape of ``w``; to rounding, w again if called twice."""
        return (w.reshape(-1, self.size) @ _matrix(self.size, w.dtype, w.device)).reshape(w.shape)


@cache
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    from scipy.linalg import hadamard  # late: scipy takes a while to import

    return torch.tensor(hadamard(size) / size**0.5, dtype=dtype, device=device)

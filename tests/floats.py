"""Floating-point numbers one after another."""

from __future__ import annotations

import torch


def around(numbers: torch.Tensor, ulps: int = 2000) -> torch.Tensor:
    """Every float32 within ``ulps`` of each number, counted through zero; shape (..., numbers x floats)."""
    bits = numbers.view(torch.int32)
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)[..., None] + torch.arange(-ulps, ulps + 1)
    back = torch.where(ordered < 0, -ordered | -(2**31), ordered).to(torch.int32)
    return back.view(torch.float32).flatten(-2)

"""Numerical integral of 1/g, and numerical inverse of an increasing function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
PANELS, ORDER = 1024, 8
HALVINGS = 45  # of a panel with a jump: until its width is near the last bit of u


def inverse_integral(g: Function) -> Function:
    """Returns u -> ∫ ds/g(s) from 0 to u, for u in [-1/2, 1/2], by Gauss-Legendre quadrature in float64.

    Panels are halved until their integrals converge, then tabulated. The last, partial panel up to u is integrated
    in each call, so the result is as smooth as g. The relative error is below 1e-10, even if g has kinks or jumps.
    """
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(ORDER))

    def integrate(low: Tensor, high: Tensor) -> Tensor:
        middle, half = (high + low) / 2, (high - low) / 2
        return half * sum(weight / g(middle + node * half) for node, weight in zip(nodes, weights, strict=True))

    edges = torch.linspace(-0.5, 0.5, PANELS + 1, dtype=torch.float64)
    for _ in range(HALVINGS):
        low, high = edges[:-1], edges[1:]
        middle, whole = (low + high) / 2, integrate(low, high)
        change = (integrate(low, middle) + integrate(middle, high) - whole).abs()
        rough = change > 1e-14 * whole.abs().sum()
        if not rough.any():
            break
        edges = torch.cat([edges, middle[rough]]).sort().values
    table = torch.cat([torch.zeros(1, dtype=torch.float64), integrate(edges[:-1], edges[1:]).cumsum(0)])
    table -= table[torch.searchsorted(edges, torch.zeros(1, dtype=torch.float64))]

    def integral(u: Tensor) -> Tensor:
        panel = torch.searchsorted(edges, u.detach().cpu().contiguous(), right=True).sub_(1).clamp_(0, len(edges) - 2)
        return table[panel].to(u.device) + integrate(edges[panel].to(u.device), u)

    return integral


def inverse_of(function: Function, slope: Function, start: float, end: float, nodes: int = 4097) -> Function:
    """Returns y -> u with function(u) = y, for a function that increases from ``start`` to ``end``, in float64.

    A table brackets u, Newton's method starts from linear interpolation in the bracket, and a step that would leave
    the bracket is replaced by bisection. The last step is below 1e-12, which bounds the error next to a jump of the
    slope; elsewhere the error is of the order of its square.
    """
    points = torch.linspace(start, end, nodes, dtype=torch.float64)
    values = function(points)

    def inverse(y: Tensor) -> Tensor:
        bracket = torch.searchsorted(values, y.cpu().contiguous(), right=True).sub_(1).clamp_(0, nodes - 2)
        low, high = points[bracket].to(y.device), points[bracket + 1].to(y.device)
        below, above = values[bracket].to(y.device), values[bracket + 1].to(y.device)
        u = low + (high - low) * ((y - below) / (above - below)).clamp_(0, 1)
        for _ in range(54):  # enough for bisection alone
            error = function(u) - y
            low, high = torch.where(error > 0, low, u), torch.where(error > 0, u, high)
            newton = u - error / slope(u)
            previous, u = u, torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
            if not u.numel() or (u - previous).abs().amax() <= 1e-12:
                break
        return u

    return inverse

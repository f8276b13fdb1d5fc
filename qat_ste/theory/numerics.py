"""Integrals of 1/g where there is no closed form, and the inverse of an increasing function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
PANELS, ORDER = 1024, 8
HALVINGS = 45  # of a panel that a jump lies in: down to the last bits of u


def inverse_integral(g: Function) -> Function:
    """u -> ∫ ds/g(s) from 0 to u, for u in [-1/2, 1/2], by Gauss-Legendre quadrature in float64.

    Panels are halved where that changes their integral, and tabulated once; the rest of the panel that u lies in is
    integrated anew, so that the result is as smooth as g. Better than 1e-10 relative also where g has kinks or jumps.
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
    """y -> u with function(u) = y, for a function that increases from ``start`` to ``end``, in float64.

    A cached table brackets u, and Newton's steps start on the straight line across the bracket, which is halved where
    one leaves it. The last step is below 1e-12: so is the error beside a jump of the slope, and elsewhere its square.
    """
    points = torch.linspace(start, end, nodes, dtype=torch.float64)
    values = function(points)

    def inverse(y: Tensor) -> Tensor:
        number = torch.searchsorted(values, y.cpu().contiguous(), right=True).sub_(1).clamp_(0, nodes - 2)
        low, high = points[number].to(y.device), points[number + 1].to(y.device)
        below, above = values[number].to(y.device), values[number + 1].to(y.device)
        u = low + (high - low) * ((y - below) / (above - below)).clamp_(0, 1)
        for _ in range(54):  # bisection alone needs that many
            error = function(u) - y
            low, high = torch.where(error > 0, low, u), torch.where(error > 0, u, high)
            step = u - error / slope(u)
            new = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
            done = (new - u).abs().amax() if new.numel() else torch.zeros(())
            u = new
            if done <= 1e-12:
                break
        return u

    return inverse

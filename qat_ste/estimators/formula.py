"""An estimator defined by a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError, Number
from qat_ste.estimators.base import Estimator
from qat_ste.estimators.expression import FUNCTIONS, evaluate, names_in
from qat_ste.quantizers.quantizer import LATENT_DTYPES, Quantizer


class Formula(Estimator):
    """Evaluates g from an expression in u, w and named parameters; α and M are integrated numerically.

    u is the signed distance from the nearest threshold in step sizes, w is the latent weight over max. If the
    expression contains w, g can differ between intervals; ``shape`` is then g in the middle interval.

    Args:
        expression: numbers, pi, u, w and parameters with + - * / ** ( ), abs, sign, sqrt, exp, log, sin, cos,
            tan, atan, sinh, cosh, tanh, erf, min and max of two, and where(u < a, b, c); evaluated in the order
            written, in the dtype of the weights.
        parameters: values of the other names in the expression.

    Raises:
        ArgumentError: the expression is not such a formula, or not finite somewhere on [-1/2, 1/2], where weights lie,
            including thresholds (u = 0) and levels; a parameter is not a finite number, or unused.
    """

    def __init__(self, expression: str = "1 + 0.5*cos(2*pi*u)", parameters: Mapping[str, float] | None = None) -> None:
        if not isinstance(expression, str | int | float) or isinstance(expression, bool):
            raise ArgumentError("expression", expression, "a formula in u, as text")
        self.expression: str = " ".join(str(expression).split())
        self.parameters: dict[str, float] | None = _checked_parameters(parameters, names_in(self.expression))
        self._check_finite()

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        if "w" not in names_in(self.expression):
            return self._evaluate(u, u)
        levels, middle = quantizer.with_max(u.new_ones(())).levels, (quantizer.num_levels - 1) // 2
        below, above = levels[middle], levels[middle + 1]
        return self._evaluate(u, (below + above) / 2 + u * (above - below))

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        if "w" not in names_in(self.expression):
            return super().derivative(w, quantizer)
        g = self._evaluate(quantizer.offset(w), quantizer.relative(w))
        return g.masked_fill(~quantizer.alive(w), 0)  # outside the range, g need not be finite

    def __repr__(self) -> str:
        text = self.expression if len(self.expression) <= 60 else f"{self.expression[:59]}…"
        return ", ".join([f"Formula({text!r}", *(f"{name}={v:g}" for name, v in (self.parameters or {}).items())]) + ")"

    def _evaluate(self, u: Tensor, w: Tensor) -> Tensor:
        g = evaluate(self.expression, {"pi": math.pi, **(self.parameters or {}), "u": u, "w": w})
        return g.clone() if isinstance(g, Tensor) else torch.ones_like(u).mul_(g)

    def _check_finite(self) -> None:
        for dtype in LATENT_DTYPES:
            u = torch.linspace(-0.5, 0.5, 4097, dtype=dtype, device="cpu")
            g = self._evaluate(u, 2 * u)  # w of a grid with two levels
            bad = ~torch.isfinite(g)
            if bad.any():
                where = f"is {g[bad][0]:g} at u = {u[bad][0]:.4g} in {str(dtype).removeprefix('torch.')}"
                allowed = f"finite for u from -1/2 to 1/2, but {where} (cap it with min(…, 10), or use where(…))"
                raise ArgumentError("expression", self.expression, allowed)


def _checked_parameters(parameters: Mapping[str, float] | None, names: frozenset[str]) -> dict[str, float] | None:
    """Parameters as floats by name, or None without any; ``names`` are those in the expression."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ArgumentError("parameters", parameters, "numbers by name, such as {a: 0.5}")
    for name, value in (parameters or {}).items():
        if name in {"u", "w", "pi", "where", *FUNCTIONS}:
            raise ArgumentError("parameters", parameters, f"numbers by name, without the reserved name {name}")
        if name not in names:
            raise ArgumentError("parameters", parameters, f"numbers by names used in the expression ({name} is not)")
        if value not in Number(real=True):
            raise ArgumentError("parameters", parameters, "finite numbers by name, such as {a: 0.5}")
    return {name: float(value) for name, value in (parameters or {}).items()} or None

"""An estimator that is written down as a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor

from qat_ste.estimators.base import Estimator
from qat_ste.estimators.expression import FUNCTIONS, evaluate, names_in
from qat_ste.quantizers.quantizer import LATENT_DTYPES, Quantizer


class Formula(Estimator):
    """g as an expression in u, w and named parameters; α and M are integrated numerically.

    u is the signed distance from the nearest threshold in steps, w the latent weight over the end of the range.
    Where w occurs g may be another in each interval; ``shape`` then is that of the interval in the middle.

    Args:
        expression: numbers, pi, u, w and parameters with + - * / ** ( ), abs, sign, sqrt, exp, log, sin, cos,
            tan, atan, sinh, cosh, tanh, erf, min and max of two, and where(u < a, b, c); operations are done in
            the order written, in the dtype of the weights.
        parameters: values of the other names in it.

    Raises:
        ValueError: the expression is no such formula or is not finite somewhere on [-1/2, 1/2], thresholds (u = 0)
            and levels included, since weights lie there; a parameter is no finite number, or does not occur.
    """

    def __init__(self, expression: str = "1 + 0.5*cos(2*pi*u)", parameters: Mapping[str, float] | None = None) -> None:
        if not isinstance(expression, str | int | float) or isinstance(expression, bool):
            raise ValueError(f"expression must be a formula in u, as text, got {expression!r}")
        self.expression: str = " ".join(str(expression).split())
        self.parameters: dict[str, float] | None = _numbers(parameters, names_in(self.expression))
        self._check_finite()

    def shape(self, u: Tensor, quantizer: Quantizer) -> Tensor:
        levels, middle = quantizer.with_max(u.new_ones(())).levels, (quantizer.num_levels - 1) // 2
        below, above = levels[middle], levels[middle + 1]
        return self._evaluate(u, (below + above) / 2 + u * (above - below))

    def derivative(self, w: Tensor, quantizer: Quantizer) -> Tensor:
        if "w" not in names_in(self.expression):
            return super().derivative(w, quantizer)
        g = self._evaluate(quantizer.offset(w), quantizer.relative(w))
        return g.masked_fill(~quantizer.alive(w), 0)  # a formula need not be finite beyond the range

    def __repr__(self) -> str:
        text = self.expression if len(self.expression) <= 60 else f"{self.expression[:59]}…"
        return ", ".join([f"Formula({text!r}", *(f"{name}={v:g}" for name, v in (self.parameters or {}).items())]) + ")"

    def _evaluate(self, u: Tensor, w: Tensor) -> Tensor:
        g = evaluate(self.expression, {"pi": math.pi, **(self.parameters or {}), "u": u, "w": w})
        return g.clone() if isinstance(g, Tensor) else u.new_tensor(g).expand_as(u).clone()

    def _check_finite(self) -> None:
        for dtype in LATENT_DTYPES:
            u = torch.linspace(-0.5, 0.5, 4097, dtype=dtype, device="cpu")
            g = self._evaluate(u, 2 * u)  # w as with two levels
            bad = ~torch.isfinite(g)
            if bad.any():
                raise ValueError(
                    f"expression must be finite for u from -1/2 to 1/2 and is {g[bad][0]:g} at u = {u[bad][0]:.4g} "
                    f"in {str(dtype).removeprefix('torch.')}: cap it with min(…, 10), or mend it by where(…)"
                )


def _numbers(parameters: Mapping[str, float] | None, names: frozenset[str]) -> dict[str, float] | None:
    """Parameters by name, or None where there are none."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"parameters must be numbers by name, such as {{a: 0.5}}, got {parameters!r}")
    numbers: dict[str, float] = {}
    for name, value in (parameters or {}).items():
        if name in {"u", "w", "pi", "where", *FUNCTIONS}:
            raise ValueError(f"parameters must not be called {name}, which has a meaning in every expression")
        if name not in names:
            raise ValueError(f"parameters must occur in the expression, and {name} does not")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"parameters must be finite numbers by name, such as {{a: 0.5}}, and {name} is {value!r}")
        numbers[name] = float(value)
    return numbers or None

"""The adjustments of a run that make the STE equivalent to another estimator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Equivalence(StrEnum):
    """Adjustment that turns a run with an estimator into its STE counterpart (arXiv 2405.05171, theorems 1 and 2)."""

    REMAP = "remap"  # initial weights M(w₀), learning rate α·η on quantized tensors
    KEEP = "keep"  # nothing: rescaling a weight's gradient history leaves its steps unchanged
    EXACT = "exact"  # nothing: steps depend only on the gradient's sign, so the runs are identical
    NONE = "none"  # no adjustment is known


@dataclass(frozen=True)
class Adjustment:
    """The adjustment that an optimizer needs, and why.

    Attributes:
        condition: under which the adjusted runs stay together.
        tested: whether ``probe`` ran the optimizer; otherwise its class is listed in ``KNOWN``.
        covered: whether the theorem covers the estimator.
    """

    equivalence: Equivalence
    reason: str
    condition: str = ""
    tested: bool = False
    covered: bool = True

    def __str__(self) -> str:
        return f"{self.reason}; valid if {self.condition}" if self.condition else self.reason

"""What is adjusted to exchange an estimator for the STE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Equivalence(StrEnum):
    """What turns a run with an estimator into its STE counterpart (arXiv 2405.05171, theorems 1 and 2)."""

    REMAP = "remap"  # initial weights M(w₀), learning rate α·η on quantized tensors
    KEEP = "keep"  # nothing: steps do not change when a weight's gradient history is rescaled
    EXACT = "exact"  # nothing: steps depend on the gradient's sign alone, the runs are identical
    NONE = "none"  # no adjustment is known


@dataclass(frozen=True)
class Adjustment:
    """The adjustment that an optimizer calls for, why, and what it takes for the runs to stay together.

    ``tested`` where the optimizer was tried out, and not looked up; not ``covered`` where the theorem does not speak
    of the estimator.
    """

    equivalence: Equivalence
    reason: str
    condition: str = ""
    tested: bool = False
    covered: bool = True

    def __str__(self) -> str:
        return f"{self.reason}; holds with {self.condition}" if self.condition else self.reason

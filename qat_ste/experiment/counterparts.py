"""What distinguishes a reference's counterparts: estimator, initial weights, learning rate and decay."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from qat_ste.base.sections import COUNTERPARTS
from qat_ste.estimators import Estimator, Ste
from qat_ste.optimizers import Adjustment, Equivalence
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent

MOST_PERCENT = 1000.0  # of jitter
ADJUSTED = ("ste", "mirrored", "ste_once")  # those that the theorem makes


def jitter_percent(name: str) -> float | None:
    """The change of learning rate in per cent: 1 for ``jitter``, that of ``jitter_<percent>``, else None."""
    if name == "jitter":
        return 1.0
    match = re.fullmatch(r"jitter_((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)", name, re.ASCII)
    percent = float(match[1]) if match else 0.0
    return percent if 0 < percent <= MOST_PERCENT else None


class _CounterpartList:
    """A rule: at least one name of a counterpart."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and bool(value) and all(map(self._is_counterpart, value))

    def __str__(self) -> str:
        return f"a list of at least one of {', '.join(COUNTERPARTS)} and jitter_<percent>"

    @staticmethod
    def _is_counterpart(name: object) -> bool:
        return isinstance(name, str) and (name in COUNTERPARTS or jitter_percent(name) is not None)


COUNTERPART_LIST = _CounterpartList()


@dataclass(frozen=True)
class MemberSpec:
    """What distinguishes a member; equal specifications give the same run."""

    estimator: Estimator
    remap: bool = False  # initial quantized weights M(w₀) instead of w₀
    lr_factor: float = 1.0  # on quantized tensors
    lr_jitter: float = 1.0  # on all tensors
    follows: bool = False  # adjusted anew where the reference's estimator changes
    mirrored: bool = False  # decays and clips as the reference does

    @classmethod
    def of(
        cls, name: str, estimator: Estimator, equivalence: Equivalence, equivalent: SteEquivalent | None, mirrors: bool
    ) -> MemberSpec:
        """The specification of the counterpart ``name`` of a reference trained with ``estimator``.

        ``mirrored`` is ``ste`` unless ``mirrors`` is set; ``ste_once`` is ``ste`` unless the weight map changes.
        """
        percent = jitter_percent(name)
        if percent is not None:
            return cls(estimator, lr_jitter=1 + percent / 100)
        if name == "replica":
            return cls(estimator)
        if name not in ADJUSTED or equivalent is None:
            return cls(Ste())
        if name == "mirrored" and mirrors:
            return replace(cls.of("ste", estimator, equivalence, equivalent, mirrors), mirrored=True)
        remap = equivalence is Equivalence.REMAP
        follows = len(estimator.stages) > 1 and not (remap and name == "ste_once")
        return cls(equivalent.counterpart(remap), remap, equivalent.lr_factor if remap else 1.0, follows=follows)


def adjust(
    adjustment: Adjustment,
    estimator: Estimator,
    quantizer: Quantizer,
    scales_move: bool = False,
    rotates: bool = False,
) -> tuple[Adjustment, SteEquivalent | None]:
    """What is adjusted for this estimator, where the optimizer calls for ``adjustment``; nothing without α and M.

    An estimator that has α and M but is not covered by the theorem is adjusted, and the reason says so.
    """
    if len(estimator.stages) > 1 and adjustment.equivalence is Equivalence.REMAP and adjustment.tested:
        reason = f"{adjustment.reason}, but not how its state changes with the estimator"
        return Adjustment(Equivalence.NONE, reason, tested=True), None
    if rotates and (adjustment.equivalence is not Equivalence.REMAP or adjustment.tested):
        reason = "the rotation mixes the gradients of weights, so that factors on them do not cancel"
        return Adjustment(Equivalence.NONE, reason), None
    try:
        equivalent = SteEquivalent(estimator, quantizer)
    except ValueError as error:
        return Adjustment(Equivalence.NONE, str(error)), None
    if scales_move and adjustment.equivalence is Equivalence.REMAP and not equivalent.keeps_ends:
        reason = f"M of {estimator} moves the outermost levels, so that scales would no longer follow from the weights"
        return Adjustment(Equivalence.NONE, reason), None
    if estimator.not_covered and adjustment.equivalence in (Equivalence.REMAP, Equivalence.KEEP):
        reason = f"{adjustment.reason}, but the theorem does not cover {estimator}: {estimator.not_covered}"
        adjustment = Adjustment(adjustment.equivalence, reason, tested=adjustment.tested, covered=False)
    return adjustment, equivalent

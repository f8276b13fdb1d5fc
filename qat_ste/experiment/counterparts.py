"""What distinguishes a reference's counterparts: estimator, initial weights, learning rate and decay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qat_ste.estimators import Estimator, Ste
from qat_ste.optimizers import Adjustment, Equivalence
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent

COUNTERPARTS = ("ste", "naive", "jitter", "replica", "mirrored", "ste_once")
MOST_PERCENT = 1000.0  # of jitter
ADJUSTED = ("ste", "mirrored", "ste_once")  # those that the theorem makes


def jitter_percent(name: str) -> float | None:
    """Change of learning rate in per cent of the counterpart ``jitter`` (1) or ``jitter_<percent>``; else None."""
    if name == "jitter":
        return 1.0
    found = re.fullmatch(r"jitter_((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)", name, re.ASCII)
    percent = float(found[1]) if found else 0.0
    return percent if 0 < percent <= MOST_PERCENT else None


def unknown_counterparts(names: Iterable[object]) -> list[str]:
    """Those of ``names`` that are no counterpart."""
    return [str(name) for name in names if not (isinstance(name, str) and _known(name))]


def _known(name: str) -> bool:
    return name in COUNTERPARTS or jitter_percent(name) is not None


@dataclass(frozen=True)
class Recipe:
    """What a member is made from; equal recipes give the same run."""

    estimator: Estimator
    remap: bool = False  # initial quantized weights M(w₀) instead of w₀
    lr_factor: float = 1.0  # on quantized tensors
    lr_jitter: float = 1.0  # on all tensors
    follows: bool = False  # adjusted anew where the reference's estimator changes
    mirrored: bool = False  # decays and clips as the reference does

    @classmethod
    def of(
        cls, name: str, estimator: Estimator, equivalence: Equivalence, pair: SteEquivalent | None, mirrors: bool
    ) -> Recipe:
        """The recipe of the counterpart with this name, for a reference trained with ``estimator``.

        Without anything that ``mirrors``, ``mirrored`` is ``ste``; so is ``ste_once`` without a map that changes.
        """
        percent = jitter_percent(name)
        if percent is not None:
            return cls(estimator, lr_jitter=1 + percent / 100)
        if name == "replica":
            return cls(estimator)
        if name not in ADJUSTED or pair is None:
            return cls(Ste())
        if name == "mirrored" and mirrors:
            return replace(cls.of("ste", estimator, equivalence, pair, mirrors), mirrored=True)
        remap = equivalence is Equivalence.REMAP
        follows = len(estimator.stages) > 1 and not (remap and name == "ste_once")
        return cls(pair.counterpart(remap), remap, pair.lr_factor if remap else 1.0, follows=follows)


def adjust(
    adjustment: Adjustment, estimator: Estimator, quantizer: Quantizer
) -> tuple[Adjustment, SteEquivalent | None]:
    """What is adjusted where the optimizer calls for ``adjustment``: nothing for an estimator without α and M.

    One that has them although the theorem does not cover it is adjusted, and the reason says so.
    """
    if len(estimator.stages) > 1 and adjustment.equivalence is Equivalence.REMAP and adjustment.tested:
        reason = f"{adjustment.reason}, but not what in its state has to change where the estimator does"
        return Adjustment(Equivalence.NONE, reason, tested=True), None
    try:
        pair = SteEquivalent(estimator, quantizer)
    except ValueError as error:
        return Adjustment(Equivalence.NONE, str(error)), None
    if estimator.not_covered and adjustment.equivalence in (Equivalence.REMAP, Equivalence.KEEP):
        reason = f"{adjustment.reason}, but the theorem does not cover {estimator}: {estimator.not_covered}"
        adjustment = Adjustment(adjustment.equivalence, reason, tested=adjustment.tested, covered=False)
    return adjustment, pair

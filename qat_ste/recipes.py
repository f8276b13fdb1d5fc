"""What distinguishes a reference's counterparts: estimator, initial weights, learning rate and decay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qat_ste.equivalence import SteEquivalent
from qat_ste.estimators import Estimator, Ste
from qat_ste.optimizers import Adjustment, Equivalence
from qat_ste.quantizer import Quantizer

COUNTERPARTS = ("ste", "naive", "jitter", "replica", "mirrored")
ADJUSTED = ("ste", "mirrored")  # those that the theorem makes


def jitter_percent(name: str) -> float | None:
    """Change of learning rate in per cent of the counterpart ``jitter`` (1) or ``jitter_<percent>``; else None."""
    if name == "jitter":
        return 1.0
    head, _, percent = name.partition("_")
    try:
        return float(percent) if head == "jitter" and float(percent) > 0 else None
    except ValueError:
        return None


def unknown_counterparts(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no counterpart."""
    return [name for name in names if name not in COUNTERPARTS and jitter_percent(name) is None]


@dataclass(frozen=True)
class Recipe:
    """What a member is made from; equal recipes give the same run."""

    estimator: Estimator
    remap: bool = False  # initial quantized weights M(w₀) instead of w₀
    lr_factor: float = 1.0  # on quantized tensors
    lr_jitter: float = 1.0  # on all tensors
    mirrored: bool = False  # decays and clips as the reference does

    @classmethod
    def of(
        cls, name: str, estimator: Estimator, equivalence: Equivalence, pair: SteEquivalent | None, mirrors: bool
    ) -> Recipe:
        """The recipe of the counterpart with this name, for a reference trained with ``estimator``.

        Without anything that ``mirrors``, ``mirrored`` is ``ste``.
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
        if equivalence is Equivalence.REMAP:
            return cls(pair.counterpart(remapped=True), remap=True, lr_factor=pair.lr_factor)
        return cls(pair.counterpart(remapped=False))


def adjust(
    adjustment: Adjustment, estimator: Estimator, quantizer: Quantizer
) -> tuple[Adjustment, SteEquivalent | None]:
    """What is adjusted where the optimizer calls for ``adjustment``: nothing for what the theorem does not cover."""
    try:
        return adjustment, SteEquivalent(estimator, quantizer)
    except ValueError as error:
        return Adjustment(Equivalence.NONE, str(error)), None

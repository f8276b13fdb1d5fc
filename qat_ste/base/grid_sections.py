"""The parameter objects of ``qat-atlas`` and ``qat-tune``: grids of trainings. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qat_ste.base.errors import COUNT, POSITIVE, SEED, STEPS, ListOf, Number, OneOf, OrNone
from qat_ste.base.parameters import PATH, Parameters, parameter


class _Seeds(ListOf):
    def __contains__(self, value: Any) -> bool:
        return super().__contains__(value) and all(seed in SEED for seed in value)


@dataclass(frozen=True)
class AtlasConfig(Parameters):
    """Section ``atlas``: the grid of ``qat-atlas``."""

    estimators: list[str] = parameter(["tanh"], ListOf((str,), "options of estimator", 1), "with overrides if need be")
    optimizers: list[str] = parameter(["sgd"], ListOf((str,), "options of optimizer", 1), "with overrides if need be")
    seeds: list[int] = parameter(
        [1, 2, 3], _Seeds((int,), f"whole numbers from {SEED.lowest} to {SEED.highest}", 1), "seeds of each cell"
    )
    steps: int = parameter(200, STEPS, "steps at the optimizer's learning rate")
    smaller: int = parameter(5, Number(2), "the grid is trained again at lr / smaller with steps x smaller")
    segment: int | None = parameter(None, OrNone(COUNT), "length of segments, a second measure; null: none", 5)
    workers: int | None = parameter(None, OrNone(Number(1, 1024)), "processes, one a core; null: all cores", 2)
    output: str = parameter("outputs/atlas", PATH, "folder; what it holds is not trained again")


class _Rates(ListOf):
    """At least two different positive numbers."""

    def __contains__(self, value: Any) -> bool:
        return super().__contains__(value) and all(rate in POSITIVE for rate in value) and len({*value}) == len(value)


@dataclass(frozen=True)
class Tuning(Parameters):
    """A study of tuned estimators: the grid of learning rates, the seeds and the comparison.

    Attributes:
        lr: learning rates, in any order; None: five around that of the optimizer, each three times the one before.
        seeds: how many; the seeds are 1, 2, …
        metric: accuracy or loss; None: the accuracy, of text the loss.
        margin: of equivalence: a difference of accuracy (0.01: one point), or a share of the STE's loss.
        extensions: rates that may be added beyond the edge of the grid, for each estimator.

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    lr: list[float] | None = parameter(
        None,
        OrNone(_Rates((int, float), "different positive numbers", 2)),
        "learning rates; null: the optimizer's x 1/9, 1/3, 1, 3, 9",
        [1e-3, 3e-3, 1e-2],
    )
    seeds: int = parameter(5, Number(1, 1000), "how many: 1, 2, ...; fewer than 3 decide nothing")
    metric: str | None = parameter(
        None, OrNone(OneOf(("accuracy", "loss"))), "accuracy or loss; null: accuracy, of text the loss", "loss"
    )
    margin: float = parameter(
        0.01, Number(0, 1, real=True, above=True, below=True), "of equivalence: in accuracy, or as a share of the loss"
    )
    extensions: int = parameter(3, Number(0, 20), "rates added where an optimum lies at the edge of the grid, at most")

    def rates(self, lr: float) -> list[float]:
        """The grid, ascending; ``lr`` is the optimizer's rate."""
        return sorted(self.lr or [lr / 9, lr / 3, lr, 3 * lr, 9 * lr])


@dataclass(frozen=True)
class TuneConfig(Tuning):
    """Section ``tune``: the study of ``qat-tune``."""

    estimators: list[str] | None = parameter(
        None, OrNone(ListOf((str,), "options of estimator", 1)), "with overrides if need be; null: that of estimator=",
        ["tanh"],
    )  # fmt: skip
    together: int = parameter(8, COUNT, "networks that one process trains on the same batches")
    workers: int | None = parameter(None, OrNone(Number(1, 1024)), "processes; null: one a core, or one on a GPU", 2)
    output: str = parameter("outputs/tune", PATH, "folder; what it holds is not trained again")

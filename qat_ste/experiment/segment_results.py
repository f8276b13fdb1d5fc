"""The results of segments: errors with intervals by length and counterpart, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import optim

from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import jitter_percent
from qat_ste.experiment.segment_statistics import METHOD, Interval, Sums, growth, ratio_interval
from qat_ste.experiment.segments import Segmented, Segments
from qat_ste.experiment.verdict import CREDITED_SHARE, EXPLAINED_SHARE, NEGLIGIBLE, SMALL
from qat_ste.optimizers import Equivalence, Lion

FLOORS = 3.0  # an error below this many times the floor of rounding decides nothing
MEMORIES = 3.0  # a segment below this many horizons of the momentum hides part of the difference
OPTIMIZER_MEMORY = "What remains comes from the optimizer's squares of gradients, which remember earlier values of g."


@dataclass(frozen=True)
class SegmentResult:
    """One counterpart in segments of one length."""

    weight_alignment_error: Interval | None
    """Σ distances at the ends of segments over Σ paths within them. None: no weight moved, or the runs are equal."""
    segments: int
    """Number of finished segments."""
    autocorrelation: float | None
    """Of the residuals of neighbouring segments; it widens the interval. None: fewer than three segments."""
    floor: float | None
    """The error that rounding of the weights alone makes, in the same unit. None: no weight moved."""
    decidable: bool
    """Whether the error is at least three times the floor."""
    quantized_weight_agreement: float | None
    """Share of the weights on the reference's level at the ends of segments, on average."""
    loss_difference: float | None
    """Training loss less that of the reference, on average."""
    layers: dict[str, Interval | None]
    """The error by quantized tensor."""


@dataclass(frozen=True)
class SegmentVerdict:
    """What segments of one length say.

    Attributes:
        outcome: "did not matter", "hardly mattered", "mattered", "claim fails", "too sensitive", "undecided" or
            "below the floor".
        ste_over_jitter, naive_over_jitter, ste_over_naive: ratios of errors in the same segments.
        short: whether the segment is shorter than three horizons of the optimizer's momentum.
    """

    statement: str
    outcome: str
    ste_over_jitter: Interval | None
    naive_over_jitter: Interval | None
    ste_over_naive: Interval | None
    short: bool


@dataclass(frozen=True)
class SegmentResults:
    """Results and verdict by length, and the exponent p of error ~ length^p by counterpart."""

    by_length: dict[int, dict[str, SegmentResult]]
    verdicts: dict[int, SegmentVerdict]
    growth: dict[str, Interval | None]
    state: str
    method: str = METHOD

    @classmethod
    def of(cls, segments: Segments) -> SegmentResults:
        """The results of trained segments; call ``report`` before."""
        cohort = segments.cohort
        by_name = {(part.length, name): part for part in segments.parts for name in part.names}
        lengths = sorted({length for length, _ in by_name})
        names = list(cohort.counterparts)
        floors = _floors(segments, by_name)
        results = {
            length: {name: _result(cohort, by_name[length, name], floors[length]) for name in names}
            for length in lengths
        }
        errors = {
            name: {length: error for length in lengths if (error := results[length][name].weight_alignment_error)}
            for name in names
        }
        known = "mapped" if segments.transfer.known else "each member's own: no map is known for this optimizer"
        return cls(
            results,
            {length: _verdict(cohort, length, results[length], by_name) for length in lengths},
            {name: growth(of_name) for name, of_name in errors.items()},
            known,
        )

    def as_dict(self) -> dict[str, Any]:
        """``segments`` and ``segment_summary`` of ``results.json``."""
        verdicts = {str(length): asdict(verdict) for length, verdict in self.verdicts.items()}
        exponents = {name: exponent and asdict(exponent) for name, exponent in self.growth.items()}
        summary = {"verdicts": verdicts, "growth": exponents, "state": self.state, "method": self.method}
        by_length = {
            str(length): {name: _plain(result) for name, result in results.items()}
            for length, results in self.by_length.items()
        }
        return {"segments": by_length, "segment_summary": summary}


def _plain(result: SegmentResult) -> dict[str, Any]:
    """The number under its own name, and the ends of its interval beside it, as other metrics have theirs."""
    error = result.weight_alignment_error
    layers = {name: each and asdict(each) for name, each in result.layers.items()}
    return {
        **vars(result),
        "weight_alignment_error": error.value if error else 0.0 if result.segments else None,
        "low": error.low if error else None,
        "high": error.high if error else None,
        "layers": layers,
    }


def _sums(part: Segmented, tensor: int | None = None) -> Sums:
    stacked = torch.stack(part.sums).numpy() if part.sums else torch.zeros(0, 1, 4).numpy()
    values = stacked.sum(1) if tensor is None else stacked[:, tensor]
    return Sums(values[:, 0], values[:, 1])


def _floors(segments: Segments, by_name: Mapping[tuple[int, str], Segmented]) -> dict[int, float | None]:
    """By length: the floor of the re-mapped counterpart, where there is one."""
    floors: dict[int, float | None] = {}
    for (length, _), part in by_name.items():
        if part.sums:
            floor, path = (float(torch.stack(part.sums).sum((0, 1))[column]) for column in (3, 1))
            floors[length] = max(floors.get(length) or 0.0, floor / path if path else 0.0)
        floors.setdefault(length, None)
    return floors


def _result(cohort: Cohort, part: Segmented, floor: float | None) -> SegmentResult:
    sums = _sums(part)
    error = ratio_interval(sums)
    count = len(part.sums)
    agreeing = float(torch.stack(part.sums)[..., 2].sum()) if count else 0.0
    return SegmentResult(
        weight_alignment_error=error,
        segments=count,
        autocorrelation=sums.autocorrelation,
        floor=floor,
        decidable=error is None or floor is None or error.value >= FLOORS * floor,
        quantized_weight_agreement=agreeing / count / cohort.quantized_weights if count else None,
        loss_difference=sum(part.losses) / count if count else None,
        layers={tensor.name: ratio_interval(_sums(part, place)) for place, tensor in enumerate(cohort.tensors)},
    )


def _verdict(
    cohort: Cohort,
    length: int,
    results: Mapping[str, SegmentResult],
    by_name: Mapping[tuple[int, str], Segmented],
) -> SegmentVerdict:
    jitters = {percent: name for name in results if (percent := jitter_percent(name))}
    yardstick = min(jitters, key=lambda percent: abs(math.log(percent)), default=None)
    sums = {name: _sums(by_name[length, name]) for name in results}
    ratios = {
        (above, below): ratio_interval(sums[above], sums[below])
        for above, below in (("ste", jitters.get(yardstick or 0.0)), ("naive", jitters.get(yardstick or 0.0)),
                             ("ste", "naive"))
        if above in sums and below in sums
    }  # fmt: skip
    jitter = jitters.get(yardstick or 0.0)
    ste, naive = ratios.get(("ste", jitter or "")), ratios.get(("naive", jitter or ""))
    equivalence = cohort.adjustment.equivalence
    remap = equivalence is Equivalence.REMAP
    share = ratios.get(("ste", "naive")) if remap else None
    outcome = _outcome(results.get("ste"), ste, naive if remap else None, share, cohort.adjustment.covered)
    horizon = _momentum_steps(next(iter(cohort.local.values())).optimizer)
    short = length < MEMORIES * horizon
    start = f"In segments of {length} {'step' if length == 1 else 'steps'} (seed {cohort.training.seed})"
    if ste is None or yardstick is None:
        exact = "ste" in results and results["ste"].segments and results["ste"].weight_alignment_error is None
        text = "the STE run is the same run, bit for bit" if exact else "nothing can be compared"
        outcome = "did not matter" if exact else "undecided"
        return SegmentVerdict(f"{start} {text}.", outcome, ste, naive, share, short)
    adjusted = "the adjusted STE" if remap else "the STE with nothing adjusted"
    text = f"{start} {adjusted} ends {ste} times as far from the reference as a {yardstick:g} % higher learning rate"
    text += f"; swapped in without adjustment {naive} times." if remap and naive is not None else "."
    text += f" {_MEANINGS[outcome]}"
    if equivalence is Equivalence.KEEP and outcome not in ("did not matter", "below the floor"):
        text += f" {OPTIMIZER_MEMORY}"
    if short:
        text += f" Momentum remembers {horizon:.0f} steps: so short a segment hides part of what it does."
    return SegmentVerdict(text, outcome, ste, naive, share, short)


_MEANINGS = {
    "did not matter": "The estimator did not matter.",
    "hardly mattered": "The estimator hardly mattered.",
    "mattered": "The estimator mattered.",
    "claim fails": "The paper's claim fails.",
    "too sensitive": "Training is too sensitive to tell the two apart.",
    "undecided": "That decides nothing: more steps narrow the interval.",
    "below the floor": "That decides nothing: rounding of the weights alone moves them as far.",
}


def _outcome(
    result: SegmentResult | None,
    ste: Interval | None,
    naive: Interval | None,
    share: Interval | None,
    covered: bool,
) -> str:
    if ste is None or ste.low is None or ste.high is None or result is None:
        return "undecided"
    if not result.decidable:
        return "below the floor"
    apart = share is not None and share.high is not None and share.high < 1
    if naive is not None and naive.high is not None and naive.high <= NEGLIGIBLE and not apart:
        return "too sensitive"
    if covered and share is not None and share.low is not None and share.low > CREDITED_SHARE:
        return "claim fails"
    if ste.high <= NEGLIGIBLE:
        return "did not matter"
    explained = share is not None and share.high is not None and share.high <= EXPLAINED_SHARE
    if ste.high <= SMALL or explained:
        return "hardly mattered"
    return "mattered" if ste.low > SMALL else "undecided"


def _momentum_steps(optimizer: optim.Optimizer) -> float:
    """1/(1 - μ) of the first group: the steps that momentum, Adam's β₁ or Lion's β₂ remembers."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, Lion):
        return 1 / (1 - group["betas"][1])
    momentum = group.get("momentum", (group.get("betas") or (0.0,))[0])
    return 1 / (1 - momentum)

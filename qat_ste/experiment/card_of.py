"""Computes the card of an estimator on a grid, under an optimizer."""

from __future__ import annotations

import inspect
import math
import re

import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError
from qat_ste.base.estimator_card import Card, Flag
from qat_ste.base.text import of_error
from qat_ste.estimators import Estimator
from qat_ste.estimators.whole_line import WholeLine
from qat_ste.experiment.counterparts import adjust
from qat_ste.optimizers import Adjustment, Equivalence, MakeOptimizer, adjustment_of
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent

POINTS = 8192  # in total, but at least LEAST in each half interval
LEAST = 16
JUMPS = "g jumps: the error of a step shrinks with the learning rate, not with its square"


def card_of(estimator: Estimator, quantizer: Quantizer, optimizer: MakeOptimizer, lr: float) -> Card:
    """The card of ``estimator``; weights are in units of the quantizer's ``max``.

    Args:
        optimizer: called with parameter groups and ``lr=``, as for ``compare``.

    Raises:
        ValueError: the estimator does not support this grid.
        ArgumentError: the estimator's ``shape`` does not map offsets to g.
    """
    quantizer = quantizer.with_max(torch.ones((), dtype=torch.float64))
    estimator.check(quantizer)
    check_shape(estimator, quantizer)
    adjustment, equivalent = adjust(adjustment_of(optimizer, lr), estimator, quantizer)
    refusal = "" if equivalent else adjustment.reason
    exact = (
        adjustment.equivalence is Equivalence.EXACT
    )  # only signs matter, so the runs are identical even if not covered
    w = _sample(quantizer)
    g = estimator.derivative(w, quantizer)
    alive = quantizer.alive(w) if not isinstance(estimator, WholeLine) else w.abs() < estimator.reach
    soft = _soft_quantizer(estimator, quantizer, w, g)
    mapped = equivalent.weight_map(w) if equivalent else None
    inside = ~quantizer.saturated(w)
    levels = quantizer.levels
    width = quantizer.interval(w)[2]
    shift = ((mapped - w).abs() / width)[inside].max().item() if mapped is not None else None
    shift = 0.0 if shift is not None and shift < 1e-9 else shift
    soft_inside = soft[(w > levels[0]) & (w < levels[-1])]
    definition, about = _documentation(type(estimator))
    bounds = equivalent.assumptions if equivalent else None
    arrays = {"levels": levels, "thresholds": quantizer.thresholds, "w": w, "alive": alive, "g": g, "soft": soft}
    return Card(
        name=str(estimator),
        definition=definition,
        about=about,
        sources=tuple(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{4,5})", f"{definition} {about}"))),
        grid=_grid(quantizer),
        flags=_flags(estimator, equivalent, refusal),
        lower=bounds.lower if bounds else g[alive].min().item(),
        upper=bounds.upper if bounds else g[alive].max().item(),
        lipschitz=bounds.lipschitz if bounds else None,
        mean=(soft_inside[-1] - soft_inside[0]).item() / (levels[-1] - levels[0]).item(),
        lr_factor=equivalent.lr_factor if equivalent else None,
        largest_shift=shift,
        refusal=refusal,
        not_covered="" if exact or not equivalent else estimator.not_covered or "",
        equivalence=str(adjustment.equivalence),
        ste_run=_ste_run(adjustment, equivalent, lr, mapped is not None and not torch.allclose(mapped, w)),
        reason=str(adjustment),
        mapped=None if mapped is None else mapped.flatten().numpy(),
        **{name: values.flatten().numpy() for name, values in arrays.items()},
    )


def check_shape(estimator: Estimator, quantizer: Quantizer) -> None:
    """Calls the estimator's ``shape`` with three offsets.

    Raises:
        ArgumentError: wrong arguments, or a result that is not a tensor of the same shape without a gradient.
        ValueError: ``shape`` raises an error.
    """
    name = f"{type(estimator).__name__}.shape"
    try:
        inspect.signature(estimator.shape).bind(None, None)
    except TypeError:
        signature = str(inspect.signature(estimator.shape))
        raise ArgumentError(name, signature, "a method with the arguments self, u and quantizer") from None
    offsets = torch.tensor([-0.25, 0.0, 0.25], dtype=torch.float64)
    try:
        g: object = estimator.shape(offsets, quantizer)
    except Exception as error:  # a foreign estimator may raise anything
        raise ValueError(f"{name}(u, quantizer) fails: {of_error(error)}") from error
    if not isinstance(g, Tensor) or g.shape != offsets.shape:
        raise ArgumentError(f"{name}(u, quantizer)", g, "a tensor with a value for each of u (a constant is c + 0 * u)")
    if g.requires_grad:
        allowed = "a tensor without a gradient (use numbers, or detach() parameters)"
        raise ArgumentError(f"{name}(u, quantizer)", g, allowed)


def _sample(quantizer: Quantizer) -> Tensor:
    """Points of each half interval, a row each, ascending; strictly inside it, since g may jump at its ends."""
    levels, thresholds = quantizer.levels, quantizer.thresholds
    beyond = torch.stack([1.5 * levels[0] - 0.5 * levels[1], 1.5 * levels[-1] - 0.5 * levels[-2]])
    edges = torch.cat([levels, thresholds, beyond]).sort().values
    share = torch.linspace(1e-12, 1 - 1e-12, max(LEAST, POINTS // len(edges)), dtype=torch.float64)
    return edges[:-1, None] + share * edges.diff()[:, None]


def _soft_quantizer(estimator: Estimator, quantizer: Quantizer, w: Tensor, g: Tensor) -> Tensor:
    """∫ g dw, equal to w in the middle of the range: in closed form if there is one, else by the trapezoidal rule."""
    closed: Tensor | None
    if isinstance(estimator, WholeLine):
        closed = estimator.primitive_of(w.clamp(-estimator.reach, estimator.reach))
    else:
        offset, _, width = quantizer.interval(w)
        closed = estimator.primitive(offset, quantizer)
        closed = None if closed is None else closed * width
    rises = closed.diff(dim=1) if closed is not None else (g[:, 1:] + g[:, :-1]) / 2 * w.diff(dim=1)
    rises = rises * ((g[:, 1:] != 0) | (g[:, :-1] != 0))
    soft = torch.cat([torch.zeros_like(w[:, :1]), rises.cumsum(1)], 1)
    soft[1:] += soft[:-1, -1:].cumsum(0)
    middle = (quantizer.levels[0] + quantizer.levels[-1]) / 2
    nearest = (w - middle).abs().argmin()
    return soft - soft.flatten()[nearest] + middle


def _documentation(kind: type[Estimator]) -> tuple[str, str]:
    """The first paragraph of the class's docstring, and the others before its sections, one per line."""
    text = re.split(r"^\w+:$", inspect.getdoc(kind) or "", maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]
    return (paragraphs[0] if paragraphs else "", "\n".join(paragraphs[1:]))


def _grid(quantizer: Quantizer) -> str:
    widths = quantizer.levels.diff()
    spacing = "equally" if torch.allclose(widths, widths[0].expand_as(widths), rtol=1e-6) else "unequally"
    spaced = f" {spacing} spaced" if len(widths) > 1 else ""
    return f"{quantizer.num_levels}{spaced} levels, saturation {quantizer.saturation}"


def _flags(estimator: Estimator, equivalent: SteEquivalent | None, refusal: str) -> tuple[Flag, ...]:
    """The assumptions in the order of ``check_assumptions``, which stops at the first that fails."""
    if equivalent is None:
        names = ["positive", "bounded", "cyclical", "even"]
        failing = re.search(rf"is not ({'|'.join(names)})\b", refusal)
        number = names.index(failing[1]) if failing else 0
        before: list[bool | None] = [True if number > 1 else None] * number
        holds = [*before, False if failing else None, *[None] * (len(names) - number - 1)]
        flags = [Flag(name, held, refusal if held is False else "") for name, held in zip(names, holds, strict=True)]
        return (*flags[:2], Flag("Lipschitz", None), *flags[2:])
    bounds = equivalent.assumptions
    smooth = bounds.lipschitz < math.inf
    return (
        Flag("positive", True, f"L₋ = {bounds.lower:.4g}"),
        Flag("bounded", True, f"L₊ = {bounds.upper:.4g}"),
        Flag("Lipschitz", smooth, f"L' = {bounds.lipschitz:.4g} a step" if smooth else JUMPS),
        Flag("cyclical", None, "only required between two thresholds, and there g = 1 or there is one threshold")
        if isinstance(estimator, WholeLine)
        else Flag("cyclical", True, "the same in every interval between two levels"),
        Flag("even", bounds.even, "M leaves the levels in place" if bounds.even else "M moves the levels"),
    )


def _ste_run(adjustment: Adjustment, equivalent: SteEquivalent | None, lr: float, moves: bool) -> str:
    if adjustment.equivalence is Equivalence.REMAP and equivalent is not None:
        alpha = equivalent.lr_factor
        rate = "the same learning rate" if alpha == 1 else f"learning rate {alpha:.4g} x {lr:g} = {alpha * lr:.3g}"
        return f"the STE at {rate} from {'M(w0)' if moves else 'the same weights'}"
    if adjustment.equivalence is Equivalence.KEEP:
        return "the STE, nothing adjusted"
    if adjustment.equivalence is Equivalence.EXACT:
        return "the STE, nothing adjusted: the runs are identical"
    return "no STE run: no adjustment is known"

"""How far weights can move while an adaptive optimizer remembers their gradients, in steps of the grid."""

from __future__ import annotations

from qat_ste.experiment.cohort import Cohort
from qat_ste.optimizers import Equivalence, Lion

EXPECTED = 0.5  # above it, g changes within the memory, and the claim for adaptive optimizers is not expected to hold


def movements(cohort: Cohort, steps: int) -> dict[str, float]:
    """δ = η·min(1/(1 - β₂), steps)/Δ by quantized tensor; empty but for Adam and its kin.

    Adam moves a weight by about η a step at most, and its squares of gradients remember 1/(1 - β₂) steps. Nothing has
    to be adjusted as long as g is nearly constant over them, so δ should be far below 1. It is an upper bound: steps of
    changing sign cancel.

    Args:
        steps: of the run.
    """
    optimizer = next(iter(cohort.local.values())).optimizer
    betas = optimizer.param_groups[0].get("betas")
    if cohort.adjustment.equivalence is not Equivalence.KEEP or not betas or isinstance(optimizer, Lion):
        return {}
    memory = min(1 / (1 - betas[1]) if betas[1] < 1 else steps, steps)
    smallest = {tensor.name: float(tensor.quantizer.levels.diff(dim=0).min()) for tensor in cohort.tensors}
    return {name: cohort.lr * memory / step for name, step in smallest.items()}


def largest_movement(delta: dict[str, float]) -> str:
    """Says where δ is too large for the claim; empty where it is nowhere."""
    if not delta or max(delta.values()) < EXPECTED:
        return ""
    name = max(delta, key=lambda tensor: delta[tensor])
    return (
        f"δ = {delta[name]:.2g} ({name}): weights can cross so many steps of the grid within the optimizer's memory "
        "of gradients, so the claim is not expected to hold (docs/equivalence.md)."
    )

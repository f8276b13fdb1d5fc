"""Divergence of what the two models say, rather than of their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def correlation(curve_ref: Tensor, curve: Tensor) -> float | None:
    """Pearson correlation of two curves; None where one is constant or has fewer than two points (metrics 8, 11)."""
    if len(curve) < 2:
        return None
    a, b = (values.double() - values.double().mean() for values in (curve_ref, curve))
    norm = (a.norm() * b.norm()).item()
    # Means round: what is left of a constant curve is no variation.
    if min(a.abs().max(), b.abs().max()) <= 1e-12 * max(curve_ref.abs().max(), curve.abs().max()) or not norm:
        return None
    return max(-1.0, min(1.0, (a @ b).item() / norm))


def output_sums(outputs_ref: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """What ``inference_metrics`` is made of, summed over some inputs; float64, to be added over batches."""
    predicted_ref, predicted = outputs_ref.argmax(1), outputs.argmax(1)
    both_wrong = (predicted_ref != targets) & (predicted != targets)
    same = predicted_ref == predicted
    difference = outputs_ref.double() - outputs.double()
    found = [
        same.sum(),
        (same & both_wrong).sum(),
        both_wrong.sum(),
        difference.square().sum(),
        difference.abs().sum(),
        (predicted == targets).sum(),
    ]
    return torch.stack([value.double() for value in found]).cpu()


def inference_metrics(sums: Tensor, inputs: float, logits: float) -> dict[str, float | None]:
    """Agreement of predictions and distance of logits on the same inputs (metrics 9 to 11).

    Shares are over ``inputs``, logit differences means over ``logits`` = inputs x classes.
    """
    same, same_wrong, both_wrong, squares, absolutes, _ = sums.tolist()
    return {
        "inference_agreement": same / inputs,
        "incorrect_inference_agreement": same_wrong / both_wrong if both_wrong else None,
        "logit_mse": squares / logits,
        "logit_mae": absolutes / logits,
    }

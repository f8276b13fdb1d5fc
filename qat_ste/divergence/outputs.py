"""Divergence of the outputs of two models: losses, predictions and logits."""

from __future__ import annotations

import torch
from torch import Tensor


def correlation(curve_ref: Tensor, curve: Tensor) -> float | None:
    """Pearson correlation of two curves (paper, metrics 8, 11); None if one is constant or they have under 2 points."""
    if len(curve) < 2:
        return None
    a, b = (values.double() - values.double().mean() for values in (curve_ref, curve))
    norm = (a.norm() * b.norm()).item()
    # Rounding of the mean leaves tiny deviations of a constant curve.
    if min(a.abs().max(), b.abs().max()) <= 1e-12 * max(curve_ref.abs().max(), curve.abs().max()) or not norm:
        return None
    return max(-1.0, min(1.0, (a @ b).item() / norm))


def output_sums(outputs_ref: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Sums of a batch of logits (N x classes) and targets (N) for ``inference_metrics``; float64, add over batches.

    Inputs whose target is no class, as -100 of a loss that ignores it, are left out.
    """
    classes = (targets >= 0) & (targets < outputs.shape[1])
    outputs_ref, outputs, targets = outputs_ref[classes], outputs[classes], targets[classes]
    predicted_ref, predicted = outputs_ref.argmax(1), outputs.argmax(1)
    both_wrong = (predicted_ref != targets) & (predicted != targets)
    same = predicted_ref == predicted
    difference = outputs_ref.double() - outputs.double()
    sums = [
        same.sum(),
        (same & both_wrong).sum(),
        both_wrong.sum(),
        difference.square().sum(),
        difference.abs().sum(),
        (predicted == targets).sum(),
        classes.sum(),
        classes.new_tensor(outputs.numel(), dtype=torch.float64),
    ]
    return torch.stack([value.double() for value in sums]).cpu()


def inference_metrics(sums: Tensor) -> dict[str, float | None]:
    """Accuracy, agreement of predictions, and mean squared and absolute difference of logits (paper, metrics 9 to 11).

    Args:
        sums: ``output_sums``, added over batches. Without a target that is a class, the result is empty.
    """
    same, same_wrong, both_wrong, squares, absolutes, correct, inputs, logits = sums.tolist()
    if not inputs:
        return {}
    return {
        "accuracy": correct / inputs,
        "inference_agreement": same / inputs,
        "incorrect_inference_agreement": same_wrong / both_wrong if both_wrong else None,
        "logit_mse": squares / logits,
        "logit_mae": absolutes / logits,
    }

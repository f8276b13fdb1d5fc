"""Evaluates all members of a cohort on the validation batches, reading each batch once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qat_ste.divergence.outputs import inference_metrics, output_sums
from qat_ste.experiment.checks import explained
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.member import Loss, checked_loss


@dataclass(frozen=True)
class Evaluation:
    """Mean loss of one member over all inputs; for classes also its accuracy.

    ``against_reference`` compares its outputs with the reference's; empty if targets are not classes.
    """

    loss: float
    accuracy: float | None
    against_reference: dict[str, float | None]


@torch.no_grad()
def evaluate(cohort: Cohort, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> list[Evaluation]:
    """Evaluations of all members, in evaluation mode. Memory does not grow with the number of batches."""
    layout, members = cohort.layout, len(cohort.specs)
    models = {index: member.model for index, member in cohort.local.items()}
    was_training = {index: model.training for index, model in models.items()}
    sums = torch.zeros(members, 9, dtype=torch.float64)  # loss, inputs, logits, and output_sums
    for model in models.values():
        model.eval()
    for inputs, targets in batches:
        with explained("validation", (inputs, targets), next(iter(models.values())), loss):
            local = {index: member.predict(inputs) for index, member in cohort.local.items()}
            outputs = layout.share_outputs(local, members)
            classified = outputs[0].ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
            for index, output in enumerate(outputs):
                sums[index, 0] += len(targets) * checked_loss(loss, output, targets).double().cpu()
                sums[index, 1] += len(targets)
                if classified:
                    sums[index, 2] += output.numel()
                    sums[index, 3:] += output_sums(outputs[0], output, targets)
    for index, model in models.items():
        model.train(was_training[index])
    sums = layout.ranks.sum(sums if layout.group == 0 else torch.zeros_like(sums))
    return [_evaluation(row) for row in sums]


def _evaluation(sums: Tensor) -> Evaluation:
    loss, inputs, logits = sums[:3].tolist()
    if not inputs:
        raise ValueError("the validation batches are empty")
    if not logits:
        return Evaluation(loss / inputs, None, {})
    return Evaluation(loss / inputs, sums[-1].item() / inputs, inference_metrics(sums[3:], inputs, logits))

"""Evaluates all members of a cohort on the validation batches, reading each batch once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.data.dataset import Batch
from qat_ste.data.task import bits_per_token
from qat_ste.divergence.outputs import inference_metrics, output_sums
from qat_ste.experiment.checks import explained
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.passes import Loss, Outputs, checked_loss
from qat_ste.experiment.randomness import EVALUATION, seed_noise


@dataclass(frozen=True)
class Evaluation:
    """Mean loss of one member over all inputs; for classes also its accuracy.

    ``against_reference`` compares its outputs with the reference's; empty if targets are not classes.
    """

    loss: float
    accuracy: float | None
    against_reference: dict[str, float | None]


def evaluate(cohort: Cohort, batches: Iterable[Batch], loss: Loss, seed: int) -> list[Evaluation]:
    """Evaluations of all members, in evaluation mode."""
    members = len(cohort.specs)

    def outputs_of(inputs: Tensor, draw_again: Callable[[], None]) -> list[Outputs]:
        local = {}
        for number, member in cohort.local.items():
            draw_again()
            local[number] = member.predict(inputs)
        return cohort.layout.share_outputs(local, members)

    with ExitStack() as stack:
        for member in cohort.local.values():
            stack.enter_context(member.evaluating())
        model = next(iter(cohort.local.values())).model
        return evaluate_networks(cohort, outputs_of, members, model, batches, loss, seed)


@torch.no_grad()
def evaluate_networks(
    cohort: Cohort,
    outputs_of: Callable[[Tensor, Callable[[], None]], Sequence[Outputs]],
    count: int,
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss,
    seed: int,
) -> list[Evaluation]:
    """Evaluations of ``count`` networks, of which the first is the reference.

    Memory does not grow with the number of batches.

    Args:
        outputs_of: inputs -> outputs of all networks; it calls its second argument before each network, so that all
            draw the same noise.
        model: one of them; the batches have to fit it.
    """
    layout = cohort.layout
    sums = torch.zeros(count, 10, dtype=torch.float64)  # loss, inputs, and output_sums
    for number, (inputs, targets) in enumerate(batches):
        with explained("validation", (inputs, targets), model, loss):
            draw_again = partial(seed_noise, seed, number, cohort.device, layout.shard.rank, EVALUATION)
            outputs = outputs_of(inputs, draw_again)
            if _are_classes(outputs[0], targets, loss):
                logits = [output.flatten(0, -2) for output in outputs]
                for index, output in enumerate(logits):
                    sums[index, 2:] += output_sums(logits[0], output, targets.flatten())
            for index, output in enumerate(outputs):  # last, since the loss may work in place
                sums[index, 0] += len(targets) * checked_loss(loss, output, targets.clone()).double().cpu()
                sums[index, 1] += len(targets)
    sums = layout.ranks.sum(sums if layout.group == 0 else torch.zeros_like(sums))
    return [_evaluation(row) for row in sums]


def _are_classes(outputs: Outputs, targets: Tensor, loss: Loss) -> bool:
    """Whether these are logits of at least two classes, the last dimension, and targets that number them."""
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[-1] < 2 or targets.is_floating_point():
        return False
    # Other losses, as F.cross_entropy, have classes as the second dimension; where both fit, accuracy is left out.
    second = outputs.ndim > 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    return outputs.shape[:-1] == targets.shape and (loss is bits_per_token or not second)


def _evaluation(sums: Tensor) -> Evaluation:
    loss, inputs = sums[:2].tolist()
    if not inputs:
        raise ArgumentError("validation", "no batches", "batches that have inputs")
    against_reference = inference_metrics(sums[2:])
    return Evaluation(loss / inputs, against_reference.pop("accuracy", None), against_reference)

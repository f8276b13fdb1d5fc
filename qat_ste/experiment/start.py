"""What quantization does to the network before the first step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from qat_ste.data.dataset import Batch
from qat_ste.divergence.outputs import inference_metrics, output_sums
from qat_ste.experiment.batch_source import on_device, seeded
from qat_ste.experiment.checks import explained
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.evaluation import are_classes
from qat_ste.experiment.model_copy import copy_model
from qat_ste.experiment.passes import Loss, checked_loss
from qat_ste.experiment.randomness import EVALUATION, seed_noise
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from qat_ste.optimizers import Equivalence


@dataclass(frozen=True)
class Start:
    """The network before training, with its float weights and with quantized ones.

    Attributes:
        float_loss, quantized_loss: on the validation batches.
        float_accuracy, quantized_accuracy: likewise; None unless targets are classes.
        outside_range: share of the quantized weights beyond the outermost levels.
        moved_by_map: mean |M(w) - w| over the range; 0 where nothing is re-mapped.
    """

    float_loss: float
    quantized_loss: float
    float_accuracy: float | None
    quantized_accuracy: float | None
    outside_range: float
    moved_by_map: float

    def __str__(self) -> str:
        before, after = (_percent(each) for each in (self.float_accuracy, self.quantized_accuracy))
        measured = f"accuracy {before} as float, {after} quantized"
        if self.float_accuracy is None:
            measured = f"loss {self.float_loss:.4g} as float, {self.quantized_loss:.4g} quantized"
        moved = f"; M moves a weight by {_percent(self.moved_by_map)} of it on average" if self.moved_by_map else ""
        return f"start: {measured}; {_percent(self.outside_range)} of the weights outside the range{moved}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


@torch.no_grad()
def start_of(cohort: Cohort, validation: Iterable[Batch], loss: Loss, seed: int) -> Start:
    """Evaluates copies of the cohort's model on this rank's validation batches; the same on all ranks."""
    model = copy_model(cohort.model).eval()
    quantized = _evaluated(cohort, model, validation, loss, seed)
    for _, _, fake_quantize in quantized_tensors(model):
        fake_quantize.holds_quantized = True  # the forward pass takes the weights as they are
    as_float = _evaluated(cohort, model, validation, loss, seed)
    outside, moved, weights = 0.0, 0.0, 0
    equivalent = cohort.equivalent if cohort.adjustment.equivalence is Equivalence.REMAP else None
    for _, parameter, fake_quantize in quantized_tensors(cohort.model):
        w, quantizer = fake_quantize.rounded(parameter), fake_quantize.quantizer
        outside += float(quantizer.saturated(w).sum())
        weights += w.numel()
        if equivalent is not None:
            moved += float(((equivalent.on(quantizer).weight_map(w) - w) / quantizer.max).abs().sum())
    return Start(as_float[0], quantized[0], as_float[1], quantized[1], outside / weights, moved / weights)


def _evaluated(
    cohort: Cohort, model: nn.Module, validation: Iterable[Batch], loss: Loss, seed: int
) -> tuple[float, float | None]:
    """Mean loss and accuracy of the model."""
    layout, sums = cohort.layout, torch.zeros(10, dtype=torch.float64)  # loss, inputs, and output_sums
    bf16 = cohort.execution.precision == "bf16"
    autocast = partial(torch.autocast, cohort.device.type, torch.bfloat16, enabled=bf16)
    batches = on_device(seeded(validation, seed), cohort.device, "validation")
    for number, (inputs, targets) in enumerate(batches):
        seed_noise(seed, number, cohort.device, layout.shard.rank, EVALUATION)
        with explained("validation", (inputs, targets), model, loss):
            with torch.set_grad_enabled(cohort.needs.gradients), autocast():
                outputs = model(inputs.clone())
                if are_classes(outputs, targets):
                    sums[2:] += output_sums(outputs.detach(), outputs.detach(), targets)
                sums[0] += len(targets) * checked_loss(loss, outputs, targets.clone()).double().cpu()
            sums[1] += len(targets)
    sums = layout.ranks.sum(sums if layout.group == 0 else torch.zeros_like(sums))
    accuracy = inference_metrics(sums[2:]).get("accuracy")
    return float(sums[0] / sums[1]), accuracy

"""What quantization does to the network before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qat_ste.data.dataset import Batch
from qat_ste.experiment.batch_source import on_device, seeded
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.evaluation import evaluate_networks
from qat_ste.experiment.model_copy import copy_model
from qat_ste.experiment.passes import Loss, Outputs, autocast_for, predict
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
    """Evaluates a copy of the cohort's model on this rank's validation batches; the same on all ranks."""
    model = copy_model(cohort.model).eval()
    fake_quantizes = [fake_quantize for _, _, fake_quantize in quantized_tensors(model)]
    autocast, gradients = autocast_for(cohort.execution.precision, cohort.device), cohort.needs.gradients

    def outputs_of(inputs: Tensor, draw_again: Callable[[], None]) -> list[Outputs]:
        outputs = []
        for as_float in (True, False):
            for fake_quantize in fake_quantizes:
                fake_quantize.holds_quantized = as_float  # then the forward pass takes the weights as they are
            draw_again()
            outputs.append(predict(model, inputs, autocast, gradients))
        return outputs

    batches = on_device(seeded(validation, seed), cohort.device, "validation")
    before, after = evaluate_networks(cohort, outputs_of, 2, model, batches, loss, seed)
    outside, moved, weights = 0.0, 0.0, 0
    equivalent = cohort.equivalent if cohort.adjustment.equivalence is Equivalence.REMAP else None
    for _, parameter, fake_quantize in quantized_tensors(cohort.model):
        w, quantizer = fake_quantize.rounded(parameter), fake_quantize.quantizer
        outside += float(quantizer.saturated(w).sum())
        weights += w.numel()
        if equivalent is not None:
            moved += float(((equivalent.on(quantizer).weight_map(w) - w) / quantizer.max).abs().sum())
    return Start(before.loss, after.loss, before.accuracy, after.accuracy, outside / weights, moved / weights)

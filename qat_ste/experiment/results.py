"""The numbers of a comparison, one line each. docs/metrics.md says how each is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Number = float | None


@dataclass(frozen=True)
class MemberResult:
    """One trained network. Shares lie between 0 and 1."""

    test_accuracy: Number = None
    """Share of right answers on the validation batches; None without them, or where targets are no classes."""
    test_loss: Number = None
    """Mean loss on the validation batches; None without them."""
    moved_fraction: Number = None
    """Share of the quantized weights that ever changed level."""
    saturated_fraction: Number = None
    """Share of the quantized weights that end beyond the range."""

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Any:
        """From numbers by name; those without a field go to ``more`` if the class has one."""
        names = {each.name for each in fields(cls)}
        arguments: dict[str, Any] = {name: value for name, value in numbers.items() if name in names}
        if more := {name: value for name, value in numbers.items() if name not in names}:
            arguments["more"] = more
        return cls(**arguments)

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name, as ``results.json`` holds them."""
        numbers = {**vars(self)}
        return numbers | numbers.pop("more", {})


@dataclass(frozen=True)
class CounterpartResult(MemberResult):
    """One counterpart against the reference. A ratio of sums is None where its denominator is 0."""

    weight_alignment_error: Number = None
    """Distance to the (re-mapped) reference in path lengths of the counterpart's weights; from 0. None: no path."""
    weight_alignment_error_unmapped: Number = None
    """The same without the weight map; from 0. None: no path."""
    quantized_weight_agreement: Number = None
    """Share of the weights on the same level as in the reference."""
    quantized_weight_agreement_moved: Number = None
    """The same of the weights that moved in either run. None: none moved."""
    change_point_sequence_agreement: Number = None
    """Share of the weights that passed through the same sequence of levels."""
    change_point_sequence_agreement_moved: Number = None
    """The same of the weights that moved in either run. None: none moved."""
    compressed_change_point_sequence_agreement: Number = None
    """Share of the weights whose sequences agree after oscillations are removed."""
    compressed_change_point_sequence_agreement_moved: Number = None
    """The same of the weights that moved in either run. None: none moved."""
    average_change_point_error: Number = None
    """Mean distance in steps between change points, of weights with equal sequences; from 0. None: no change points."""
    average_compressed_change_point_error: Number = None
    """The same after oscillations are removed; in steps, from 0. None: no change points."""
    average_oscillation_error: Number = None
    """Mean difference of the numbers of oscillations per change point; from 0. None: no change points."""
    train_loss_correlation: Number = None
    """Pearson correlation of the training losses; -1 to 1. None: a constant curve."""
    validation_loss_correlation: Number = None
    """Pearson correlation of the validation losses; -1 to 1. None: no validation, or a constant curve."""
    validation_accuracy_correlation: Number = None
    """Pearson correlation of the validation accuracies; -1 to 1. None: no accuracies, or a constant curve."""
    inference_agreement: Number = None
    """Share of the validation inputs with the same predicted class. None: no classes."""
    incorrect_inference_agreement: Number = None
    """The same of the inputs that both get wrong. None: there are none."""
    logit_mse: Number = None
    """Mean squared difference of the logits; from 0. None: no classes."""
    logit_mae: Number = None
    """Mean absolute difference of the logits; from 0. None: no classes."""
    initial_alignment_error: Number = None
    """Mean distance to the re-mapped reference before the first step, in units of the range; from 0."""
    initial_quantized_agreement: Number = None
    """Share of the weights that start on the reference's level; 1 unless a weight map fails."""
    layers: dict[str, dict[str, Number]] = field(default_factory=dict)
    """The metrics of the weights by quantized tensor, then by name."""
    more: dict[str, Number] = field(default_factory=dict)
    """Metrics without a field above: your own, and ``weight_alignment_error_bound`` under plain SGD."""

"""The paper's bound on the error of a step, added up beside the error that is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from qat_ste.divergence import Trajectory
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.member import Update


class ErrorBound:
    """Σ over steps and weights of ``SteEquivalent.step_error_bound``/max, for the re-mapped counterpart.

    For plain SGD alone, of whose steps the bound speaks (arXiv 2405.05171, proof of theorem 1), on one rank. It
    holds for weights that stay where the backward pass is alive, and its second-order term in η alone as long
    as all quantized weights agree.

    Args:
        trajectories: of the members, not yet told of the step whose bound is added.
    """

    def __init__(self, cohort: Cohort, number: int, trajectories: Sequence[Trajectory]) -> None:
        assert cohort.equivalent is not None
        self.number, self._cohort, self._pair = number, cohort, cohort.equivalent
        self._before = trajectories[0].previous
        self._members = [cohort.local[0], cohort.local[number]]
        self._path = trajectories[number].path
        self._total = torch.zeros(len(cohort.tensors), dtype=torch.float64, device=cohort.device)

    @staticmethod
    def applies(cohort: Cohort, number: int) -> bool:
        """Whether the bound speaks of this counterpart, whose gradients reach the optimizer as they are."""
        if cohort.layout.ranks.size > 1 or cohort.equivalent is None or not cohort.specs[number].remap:
            return False
        if not cohort.adjustment.covered or cohort.update != Update() or len(cohort.specs[0].estimator.stages) > 1:
            return False
        optimizer = cohort.local[0].optimizer
        if type(optimizer) is not torch.optim.SGD:
            return False
        plain = not any(group["momentum"] or group["weight_decay"] for group in optimizer.param_groups)
        return plain and cohort.equivalent.assumptions.lipschitz < math.inf

    @torch.no_grad()
    def observe(self) -> None:
        """Adds the step just made, of which gradients and former weights are still there."""
        reference, ste = self._members
        estimator, lr = self._pair.estimator, reference.optimizer.param_groups[0]["lr"]
        for number, tensor in enumerate(self._cohort.tensors):
            gradient, gradient_ste = (member.weights.parameters[number].grad for member in (reference, ste))
            if gradient is None or gradient_ste is None:
                continue
            w = self._before[tensor.start : tensor.stop]
            g, (_, _, width) = estimator.derivative(w, tensor.quantizer), tensor.quantizer.interval(w)
            bound = self._pair.step_error_bound(lr, gradient.flatten() / g, gradient_ste.flatten(), width)
            bound /= tensor.quantizer.max
            self._total[number] += bound.masked_fill_(g == 0, 0).sum(dtype=torch.float64)

    def now(self) -> float | None:
        """The sum in units of the counterpart's path, as the weight alignment error is; None beyond all numbers."""
        path, total = self._path.sum().item(), self._total.sum().item()
        return total / path if path and math.isfinite(total) else None

    def state_dict(self) -> dict[str, Any]:
        return {"total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._total.copy_(state["total"])

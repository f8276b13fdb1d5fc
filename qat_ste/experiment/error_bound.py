"""Sums the paper's bound on the error of a step, to compare with the measured error."""

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

    Only for plain SGD (arXiv 2405.05171, proof of theorem 1), on one rank. The bound holds for weights that stay
    where g > 0, and its form of second order in η only while all quantized weights agree.

    Args:
        trajectories: of the members; ``observe`` must be called before they observe the same step.
    """

    def __init__(self, cohort: Cohort, number: int, trajectories: Sequence[Trajectory]) -> None:
        assert cohort.equivalent is not None
        self.number, self._cohort, self._equivalent = number, cohort, cohort.equivalent
        self._before = trajectories[0].previous
        self._members = [cohort.local[0], cohort.local[number]]
        self._path = trajectories[number].path
        self._total = torch.zeros(len(cohort.tensors), dtype=torch.float64, device=cohort.device)

    @staticmethod
    def applies(cohort: Cohort, number: int) -> bool:
        """Whether the bound applies to this counterpart: plain SGD on unchanged gradients, and a Lipschitz g."""
        if cohort.layout.ranks.size > 1 or cohort.equivalent is None or not cohort.specs[number].remap:
            return False
        if cohort.scales_move or cohort.rotates:
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
        """Adds the bound of the step just made; needs its gradients and the weights before it."""
        reference, ste = self._members
        estimator, lr = self._equivalent.estimator, reference.optimizer.param_groups[0]["lr"]
        for number, tensor in enumerate(self._cohort.tensors):
            gradient, gradient_ste = (member.weights.parameters[number].grad for member in (reference, ste))
            if gradient is None or gradient_ste is None:
                continue
            w = self._before[tensor.start : tensor.stop]
            g, (_, _, width) = estimator.derivative(w, tensor.quantizer), tensor.quantizer.interval(w)
            bound = self._equivalent.step_error_bound(lr, gradient.flatten() / g, gradient_ste.flatten(), width)
            bound /= tensor.quantizer.max
            self._total[number] += bound.masked_fill_(g == 0, 0).sum(dtype=torch.float64)

    def now(self) -> float | None:
        """The sum / the counterpart's path, like the alignment error; None if the path is 0 or the sum infinite."""
        path, total = self._path.sum().item(), self._total.sum().item()
        return total / path if path and math.isfinite(total) else None

    def state_dict(self) -> dict[str, Any]:
        return {"total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""
        self._total.copy_(state["total"])

"""Makes a network the counterpart of the reference: weights, buffers and the state of its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import MemberSpec
from qat_ste.experiment.member import Member
from qat_ste.optimizers.state_maps import STATE_MAPS, StateKind


class StateTransfer:
    """Maps the reference's state to that of its counterparts; the table is in docs/segments.md.

    ``known`` says whether the map of the optimizer's state is known; without one, each member keeps its own.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        optimizer = type(next(iter(cohort.local.values())).optimizer)
        self.known = optimizer in STATE_MAPS
        self._state_map = STATE_MAPS.get(optimizer, {})

    def weights(self) -> Tensor:
        """The reference's latent weights, on every rank."""
        return self._of_reference({"weights": self._like_reference().weights.buffer})["weights"]

    def reference(self) -> dict[Any, Tensor]:
        """The reference's tensors by place, on every rank."""
        return self._of_reference(self._tensors(self._like_reference()))

    def _like_reference(self) -> Member:
        """The reference, or a member with tensors of the same shapes where other ranks train it."""
        return self.cohort.local.get(0) or next(iter(self.cohort.local.values()))

    def _of_reference(self, tensors: dict[Any, Tensor]) -> dict[Any, Tensor]:
        cohort = self.cohort
        if cohort.layout.groups > 1:
            tensors = {key: values.detach().contiguous().clone() for key, values in tensors.items()}
            for values in tensors.values():
                cohort.layout.broadcast(0, values)
        return tensors

    def _tensors(self, member: Member) -> dict[Any, Tensor]:
        """What a segment takes over: weights, scales, other parameters, buffers and mapped state of the optimizer."""
        tensors: dict[Any, Tensor] = {"weights": member.weights.buffer}
        if member.weights.scales is not None:
            tensors |= {("scale", number): values.detach() for number, values in member.weights.scales.values.items()}
        tensors |= {("parameter", place): values.detach() for place, values in enumerate(member.other_parameters)}
        tensors |= {("buffer", name): values for name, values in member.model.named_buffers()}
        for place, parameter in enumerate(
            [*member.weights.parameters, *member.other_parameters, *member.scale_parameters]
        ):
            state = member.optimizer.state.get(parameter, {})
            for key in self._state_map:
                if isinstance(state.get(key), Tensor):
                    tensors["state", place, key] = state[key]
        return tensors

    def give(self, member: Member, number: int, reference: Mapping[Any, Tensor]) -> None:
        """Makes a member the counterpart ``number`` of the reference, whose tensors are given."""
        spec = self.cohort.specs[number]
        tensors, w_ref = self._tensors(member), reference["weights"]
        chunks = self._like_reference().weights.all_chunks
        weight_map = self.cohort.weight_map(number)
        for key, values in reference.items():
            if key not in tensors:  # a buffer or state that the member has not made yet
                continue
            tensors[key].copy_(values)
        if weight_map is not None:
            for chunk in chunks:
                tensors["weights"][chunk.where] = weight_map(w_ref[chunk.where], chunk.quantizer)
        for kind in {*self._state_map.values()}:
            factors = torch.ones_like(w_ref)
            for chunk in chunks:
                factors[chunk.where] = self._factor(kind, spec, w_ref[chunk.where], chunk.quantizer)
            views = list(member.weights.views(factors).values())
            for key, values in tensors.items():
                if key[0] == "state" and self._state_map[key[2]] is kind:
                    if key[1] < len(views):
                        values.mul_(views[key[1]])
                    if kind is StateKind.SCALED_VELOCITY:
                        values.mul_(spec.lr_jitter)
        if (scales := member.weights.scales) is not None:
            member.weights.rescale(
                scales.values | (scales.changed_by_map() if spec.remap and not spec.mirrored else {})
            )
        member.weights.forget()

    def _factor(self, kind: StateKind, spec: MemberSpec, w_ref: Tensor, quantizer: Any) -> Tensor | float:
        """What the member would have accumulated, over what the reference has, for the same gradients G."""
        reference = self.cohort.specs[0].estimator.stages[self.cohort.stage]
        if kind is StateKind.STEPS or spec.estimator == self.cohort.specs[0].estimator:
            return 1.0
        g = reference.derivative(w_ref, quantizer)
        inside = torch.where(g > 0, 1 / g, 1.0)
        if spec.remap:
            alpha = self.cohort.equivalent_now(spec).lr_factor
            scaled = torch.where(g > 0, alpha / g, 1.0)  # M'
            return scaled if kind is StateKind.SCALED_VELOCITY else scaled / alpha
        return inside

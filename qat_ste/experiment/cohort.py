"""The reference and its counterparts: networks that differ in estimator, initial weights, learning rate and decay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError, require
from qat_ste.base.sections import Execution, Training
from qat_ste.divergence import WeightMap
from qat_ste.estimators import Estimator
from qat_ste.experiment.counterparts import ADJUSTED, COUNTERPART_LIST, MemberSpec, adjust
from qat_ste.experiment.execution import candidates, check_execution, fastest
from qat_ste.experiment.member import Member, Needs, Update, remap
from qat_ste.experiment.model_copy import copy_model
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.ranks import Layout, Ranks
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from qat_ste.fake_quant.flat_layout import Chunk, FlatTensor, group_chunks, split_into_chunks
from qat_ste.fake_quant.flat_weights import FlatWeights, flat_tensors
from qat_ste.optimizers import MakeOptimizer, adjustment_of
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent

log = logging.getLogger(__name__)


class Cohort:
    """A reference and its counterparts, trained on the same batches.

    Args:
        model: the reference, its weights quantized with ``estimator``; every member starts as a copy of it.
        estimator: of the reference.
        optimizer: called with parameter groups and ``lr=``, once per member.
        lr: the reference's learning rate η.
        counterparts: ``ste``, ``mirrored``, ``ste_once``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        training: clipping, decay and accumulation; its length and seed are not used here.
        ranks: the processes that train the members, placed by ``execution.placement``; see ``Layout``.

    Members are numbered; the reference is 0. ``names`` maps names to numbers, ``specs`` holds each member's
    specification. Counterparts with equal specifications are one run, trained once and listed under each name.
    ``stage`` numbers the current stage of an estimator that changes. ``needs`` says what the model needs from a
    member; ``make_members`` makes the members.

    Raises:
        ArgumentError: an unknown counterpart, or CUDA graphs that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        optimizer: MakeOptimizer,
        lr: float,
        counterparts: Sequence[str],
        training: Training = Training(),
        execution: Execution = Execution(),
        ranks: Ranks | None = None,
    ) -> None:
        if counterparts:
            require(COUNTERPART_LIST, counterparts=counterparts)
        self.tensors = flat_tensors(model)
        self.scales_move = any(tensor.scale for tensor in self.tensors)
        self.rotates = any(tensor.rotation for tensor in self.tensors)
        self.quantized_weights = self.tensors[-1].stop
        self.lr = lr
        self.adjustment = adjustment_of(optimizer, lr)
        self.equivalent: SteEquivalent | None = None
        self.stage = 0
        if set(ADJUSTED) & set(counterparts):
            quantizer = _common_quantizer(self.tensors)
            self.adjustment, self.equivalent = adjust(
                self.adjustment, estimator, quantizer, self.scales_move, self.rotates
            )
        equivalence, self.update = self.adjustment.equivalence, Update.of(training)
        mirrors = self.update.mirrors(equivalence, [tensor.scale for tensor in self.tensors if tensor.scale])
        self.specs, self.names = [MemberSpec(estimator)], {"reference": 0}
        for name in counterparts:
            spec = MemberSpec.of(name, estimator, equivalence, self.equivalent, mirrors)
            if spec not in self.specs[1:]:
                self.specs.append(spec)
            self.names[name] = self.specs.index(spec, 1)
        self.layout = Layout(ranks or Ranks(), execution.placement, len(self.specs))
        if self.rotates:
            self._check_rotation(counterparts, training)
        if self.scales_move and self.layout.groups > 1:
            raise ArgumentError("placement", execution.placement, "together where scales move with the weights")
        share = self.layout.slice_size(self.quantized_weights)
        self.first = min(share * self.layout.ranks.rank, self.quantized_weights)
        self.last = min(self.first + share, self.quantized_weights)
        self.device = next(model.parameters()).device
        check_execution(execution.execution, self.device, self.layout.ranks.size, training.accumulate)
        self.model, self._optimizer, self._share = model, optimizer, share
        self.needs = Needs()
        self.training, self.execution, self.mode = training, execution, execution.execution
        self._like = next(quantized_tensors(model))[1]
        self.chunk_groups = group_chunks(split_into_chunks(self.tensors, 0, self.quantized_weights), self._like)
        self.local: dict[int, Member] = {}

    def _check_rotation(self, counterparts: Sequence[str], training: Training) -> None:
        """Whether what is trained beside a rotation does not work weight by weight.

        Raises:
            ArgumentError: it does.
        """
        size = next(tensor.rotation.size for tensor in self.tensors if tensor.rotation is not None)
        reasons = {
            "scales without a gradient": any(each.scale and each.scale.has_gradient for each in self.tensors),
            "an estimator that stays the same": len(self.specs[0].estimator.stages) > 1,
            "no segments": bool(training.segments),
            "no counterpart 'mirrored', which decays or clips": "mirrored" in counterparts and self.update != Update(),
            "placement=together": self.layout.groups > 1,
        }
        if instead := next((reason for reason, breaks in reasons.items() if breaks), None):
            raise ArgumentError("rotation", size, f"None, or {instead}")

    def make_members(self) -> Cohort:
        """Makes the members, which takes nearly all the memory of a cohort; returns the cohort.

        ``local`` holds the members that this rank trains, by number. ``slices`` holds this rank's share of every
        member's weights, ``first`` to ``last``, one row per member; ``chunks`` and ``slice_chunk_groups`` lay out each.
        """
        if self.execution.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model, self.layout.data_group)
        numbers = [number for number in range(len(self.specs)) if self.layout.trains(number)]
        latent, self._quantized = self._new_buffers(len(numbers))
        rows = zip(numbers, latent, self._quantized, strict=True)
        self.local = {number: self.member(self.specs[number], *buffers) for number, *buffers in rows}
        share, first = self._share, self._share * self.layout.ranks.rank
        if len(self.local) == len(self.specs):  # views, of equal size on all ranks
            self._slices = latent[:, first : first + share]
        else:
            self._slices = latent.new_zeros(len(self.specs), share)
        self.update_slices()
        self.slices = self._slices[:, : self.last - self.first]
        self.chunks = [self._chunks_of(number) for number in range(len(self.specs))]
        alone = self.layout.ranks.size == 1
        chunk_groups = self.chunk_groups if alone else group_chunks(self.chunks[0], self._like)
        self.slice_chunk_groups = [
            group_chunks(chunks, self._like) if self.scales_move else chunk_groups for chunks in self.chunks
        ]
        return self

    def _chunks_of(self, number: int) -> list[Chunk]:
        """The chunks of a member's row of ``slices``; without moving scales those of all members are equal."""
        scales = self.local[number].weights.scales if self.scales_move else None
        return split_into_chunks(self.tensors, self.first, self.last, scales)

    @property
    def counterparts(self) -> dict[str, int]:
        """The number of each counterpart, by name."""
        return {name: number for name, number in self.names.items() if name != "reference"}

    def choose_mode(self, loss: Loss, inputs: Tensor, targets: Tensor, steps: int) -> None:
        """Sets ``mode`` for all members; "auto" becomes the fastest mode on a single GPU, else "eager".

        Raises:
            ArgumentError: the mode is "graph", and a step does what CUDA graphs do not repeat.
        """
        not_replayed = self.needs.not_replayed
        if self.mode == "graph" and not_replayed:
            raise ArgumentError("execution", "graph", f"eager or compile: CUDA graphs would not repeat {not_replayed}")
        if self.mode == "auto":
            self.mode = "eager"
            if self.device.type == "cuda" and self.layout.ranks.size == 1:
                modes = candidates(self.training.accumulate, not not_replayed)
                trials = (self._trial(mode, loss, inputs, targets) for mode in modes)
                self.mode = fastest(trials, steps)
                log.info("execution auto: %s is the fastest here", self.mode)
        for member in self.local.values():
            member.execute(self.mode)

    def update_slices(self) -> None:
        """Updates ``slices`` after a step; they are views where a rank trains all members."""
        if self.layout.groups > 1:
            for number, out in enumerate(self._slices):
                member = self.local.get(number)
                self.layout.scatter(number, member.weights.buffer if member else None, out)

    def levels(self) -> Iterator[Tensor]:
        """Level numbers of ``slices``, one chunk group at a time; must be read to the end.

        Where this rank has all weights, this also writes their quantized values for the next forward pass.
        """
        alone = self.layout.ranks.size == 1
        for of_members in zip(*self.slice_chunk_groups, strict=True):
            where = of_members[0].where
            if self.scales_move:
                rows = [group.quantizer.index(self.slices[n, where]) for n, group in enumerate(of_members)]
                for n, (group, row) in enumerate(zip(of_members, rows, strict=True) if alone else ()):
                    self._quantized[n, where] = group.quantizer.level(row)
                level = torch.stack(rows)
            else:
                level = of_members[0].quantizer.index(self.slices[:, where])
                if alone:
                    self._quantized[:, where] = of_members[0].quantizer.level(level)
            yield level
        for member in self.local.values() if alone else ():
            member.weights.remember()

    def weight_map(self, number: int) -> WeightMap | None:
        """R: M of the stage that the member was last re-mapped for; None (identity) if it never was."""
        spec = self.specs[number]
        if self.equivalent is None or not spec.remap:
            return None
        return lambda w, quantizer: self.equivalent_now(spec).on(quantizer).weight_map(w)

    def equivalent_now(self, spec: MemberSpec) -> SteEquivalent:
        """The equivalence that a member with this specification was last adjusted for."""
        return cast(SteEquivalent, self.equivalent).at(self.stage if spec.follows else 0)

    def enter(self, step: int, steps: int) -> bool:
        """Switches to the estimator of this step; returns whether it changed, which may re-map weights."""
        stage = step * len(self.specs[0].estimator.stages) // steps
        if stage == self.stage:
            return False
        before, self.stage = self.stage, stage
        for number, member in self.local.items():
            self.switch(member, self.specs[number], before)
        self.update_slices()
        return True

    def switch(self, member: Member, spec: MemberSpec, before: int) -> None:
        """Switches one member from stage ``before`` to the current stage."""
        if spec.follows and self.equivalent is not None:
            equivalent = self.equivalent.at(self.stage)
            member.use(equivalent.counterpart(spec.remap), equivalent)
            if spec.remap:
                remap(member, self.equivalent.at(before), equivalent)
        elif len(spec.estimator.stages) > 1:
            member.use(spec.estimator.stages[self.stage])

    def member(self, spec: MemberSpec, latent: Tensor | None = None, quantized: Tensor | None = None) -> Member:
        """A new member of this specification, with its weights in these buffers or in new ones."""
        model = copy_model(self.model)
        if latent is None or quantized is None:
            latent, quantized = (buffer[0] for buffer in self._new_buffers(1))
        weights = FlatWeights(model, spec.estimator.stages[0], self.tensors, self.chunk_groups, latent, quantized)
        if spec.remap and self.equivalent is not None:
            for chunk in split_into_chunks(self.tensors, 0, self.quantized_weights):
                latent_chunk = weights.buffer[chunk.where]
                latent_chunk.copy_(self.equivalent.on(chunk.quantizer).weight_map(latent_chunk))
            weights.rotate_back()
            if weights.scales is not None and not spec.mirrored:
                weights.rescale(weights.scales.changed_by_map())
        settings = self.training, self.execution, self.layout, self.needs
        return Member(model, weights, self._optimizer, self.lr, spec, *settings, self.equivalent)

    def _new_buffers(self, members: int) -> tuple[Tensor, Tensor]:
        """Buffers for latent and quantized weights, one row per member; a checkpoint saves the whole of one buffer."""
        latent = self._like.new_zeros(members, self._share * self.layout.ranks.size)
        return latent, torch.zeros_like(latent)

    def _trial(self, mode: str, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[str, Callable[[], float]]:
        member = self.member(self.specs[0])
        member.execute(mode)
        return mode, lambda: member.step(inputs, targets, loss, 1.0).item()  # waits for the GPU


def _common_quantizer(tensors: Sequence[FlatTensor]) -> Quantizer:
    """One quantizer with the ranges of all tensors, to check all of them at once."""
    ranges = [torch.as_tensor(tensor.quantizer.max, dtype=torch.float64).cpu().reshape(-1) for tensor in tensors]
    return tensors[0].quantizer.with_max(torch.cat(ranges).unique())

"""The reference and its counterparts: models that differ in estimator, initial weights, learning rate and decay."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from qat_ste.divergence import WeightMap
from qat_ste.estimators import Estimator
from qat_ste.experiment.counterparts import ADJUSTED, COUNTERPARTS, Recipe, adjust, unknown_counterparts
from qat_ste.experiment.execution import Execution, fastest
from qat_ste.experiment.member import Loss, Member, Update, remap
from qat_ste.experiment.ranks import Layout, Ranks
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from qat_ste.fake_quant.flat_layout import Part, blocks_of, levels_of, pieces_of
from qat_ste.fake_quant.flat_weights import FlatWeights, parts_of
from qat_ste.optimizers import MakeOptimizer, adjustment_of
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.theory.equivalence import SteEquivalent

log = logging.getLogger(__name__)


class Cohort:
    """A reference and its counterparts, to be trained on the same batches.

    Args:
        model: the reference, its weights quantized with ``estimator``; every member starts as a copy of it.
        estimator: the reference's.
        optimizer: called with parameter groups and ``lr=``, once a member.
        lr: the reference's learning rate η.
        counterparts: ``ste``, ``mirrored``, ``ste_once``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        ranks, placement: who trains them; see ``Layout``.

    Members are numbered, the reference is 0; ``names`` has each one's number, ``recipes`` what each is made from. Of an
    estimator that changes, ``stage`` is the number of the one in use. Counterparts with the same recipe are the same
    run by construction: trained once, found under each name. There are no members before ``make_members``.

    Raises:
        ValueError: an unknown counterpart, or CUDA graphs without a GPU or on several ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        optimizer: MakeOptimizer,
        lr: float,
        counterparts: Sequence[str],
        execution: Execution = Execution(),
        ranks: Ranks | None = None,
        placement: str = "together",
        update: Update = Update(),
    ) -> None:
        unknown = unknown_counterparts(counterparts)
        if unknown:
            raise ValueError(
                f"counterparts: {', '.join(map(repr, unknown))} unknown, allowed are "
                f"{', '.join(COUNTERPARTS)} and jitter_<percent>"
            )
        self.parts = parts_of(model)
        self.quantized_weights = self.parts[-1].stop
        self.lr = lr
        self.adjustment = adjustment_of(optimizer, lr)
        self.pair: SteEquivalent | None = None
        self.stage = 0
        if set(ADJUSTED) & set(counterparts):
            self.adjustment, self.pair = adjust(self.adjustment, estimator, _common_quantizer(self.parts))
        equivalence = self.adjustment.equivalence
        self.recipes, self.names = [Recipe(estimator)], {"reference": 0}
        for name in counterparts:
            recipe = Recipe.of(name, estimator, equivalence, self.pair, update.mirrors(equivalence))
            if recipe not in self.recipes[1:]:
                self.recipes.append(recipe)
            self.names[name] = self.recipes.index(recipe, 1)
        self.layout = Layout(ranks or Ranks(), placement, len(self.recipes))
        share = self.layout.slice_size(self.quantized_weights)
        self.first = min(share * self.layout.ranks.rank, self.quantized_weights)
        self.last = min(self.first + share, self.quantized_weights)
        self.device = next(model.parameters()).device
        if execution.mode == "graph" and (self.device.type != "cuda" or self.layout.ranks.size > 1):
            raise ValueError("mode graph needs a GPU and one rank: take eager")
        self._model, self._optimizer, self.execution, self._share = model, optimizer, execution, share
        self.mode = execution.mode
        self.update = update
        self._like = next(quantized_tensors(model))[1]
        self.blocks = blocks_of(pieces_of(self.parts, 0, self.quantized_weights), self._like)
        self.local: dict[int, Member] = {}

    def make_members(self) -> Cohort:
        """Makes the members, which takes nearly all the memory of a cohort; returns the cohort.

        ``local`` has those that this rank trains, by number. ``slices`` is this rank's share of every member's weights,
        ``first`` to ``last``, a row a member, which ``update_slices`` keeps current; ``slice_blocks`` are its blocks.
        """
        if self.execution.sync_batchnorm:
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model, self.layout.data_group)
        numbers = [number for number in range(len(self.recipes)) if self.layout.trains(number)]
        latent, self._quantized = self._new_buffers(len(numbers))
        rows = zip(numbers, latent, self._quantized, strict=True)
        self.local = {number: self.member(self.recipes[number], *buffers) for number, *buffers in rows}
        share, first = self._share, self._share * self.layout.ranks.rank
        if len(self.local) == len(self.recipes):  # views, of equal size on all ranks
            self._slices = latent[:, first : first + share]
        else:
            self._slices = latent.new_zeros(len(self.recipes), share)
        self.update_slices()
        self.slices = self._slices[:, : self.last - self.first]
        alone = self.layout.ranks.size == 1
        pieces = pieces_of(self.parts, self.first, self.last)
        self.slice_blocks = self.blocks if alone else blocks_of(pieces, self._like)
        return self

    @property
    def counterparts(self) -> dict[str, int]:
        """Number of each counterpart, by name."""
        return {name: number for name, number in self.names.items() if name != "reference"}

    def choose_mode(self, loss: Loss, inputs: Tensor, targets: Tensor, steps: int) -> None:
        """Decides what the mode "auto" is, on a GPU with members to spare; all compute in ``mode`` from now on."""
        if self.mode == "auto":
            self.mode = "eager"
            if self.device.type == "cuda" and self.layout.ranks.size == 1:
                trials = (self._trial(mode, loss, inputs, targets) for mode in self.execution.candidates)
                self.mode = fastest(trials, steps)
                log.info("runtime.execution=auto is %s here", self.mode)
        for member in self.local.values():
            member.execute(self.mode)

    def update_slices(self) -> None:
        """Brings ``slices`` up to date after a step; where a rank trains all members they are views anyway."""
        if self.layout.groups > 1:
            for number, out in enumerate(self._slices):
                member = self.local.get(number)
                self.layout.scatter(number, member.weights.buffer if member else None, out)

    def levels(self) -> Iterator[Tensor]:
        """Levels of ``slices``, block by block; to be read to the end.

        Where this rank has all weights their quantized values follow from these at once, and the next step, whose
        forward pass takes them, does not look for levels again.
        """
        alone = self.layout.ranks.size == 1
        for block, level in zip(self.slice_blocks, levels_of(self.slice_blocks, self.slices), strict=True):
            if alone:
                self._quantized[:, block.where] = block.quantizer.level(level)
            yield level
        for member in self.local.values() if alone else ():
            member.weights.remember()

    def weight_map(self, number: int) -> WeightMap | None:
        """R: M of the stage that the member was last re-mapped for, None (identity) where it never was."""
        pair, recipe = self.pair, self.recipes[number]
        if pair is None or not recipe.remap:
            return None
        return lambda w, quantizer: pair.at(self.stage if recipe.follows else 0).on(quantizer).weight_map(w)

    def enter(self, step: int, steps: int) -> bool:
        """Goes on with the estimator of this step; whether it is another one, and weights may have been re-mapped."""
        stages = self.recipes[0].estimator.stages
        stage = step * len(stages) // steps
        if stage == self.stage:
            return False
        before, self.stage = self.stage, stage
        for number, member in self.local.items():
            recipe = self.recipes[number]
            if recipe.follows and self.pair is not None:
                pair = self.pair.at(stage)
                member.use(pair.counterpart(recipe.remap), pair)
                if recipe.remap:
                    remap(member, self.pair.at(before), pair)
            elif len(recipe.estimator.stages) > 1:
                member.use(stages[stage])
        self.update_slices()
        return True

    def member(self, recipe: Recipe, latent: Tensor | None = None, quantized: Tensor | None = None) -> Member:
        """A new member made from one of ``recipes``, its weights in these buffers or in its own."""
        model = copy.deepcopy(self._model)
        if latent is None or quantized is None:
            latent, quantized = (buffer[0] for buffer in self._new_buffers(1))
        weights = FlatWeights(model, recipe.estimator.stages[0], self.parts, self.blocks, latent, quantized)
        if recipe.remap and self.pair is not None:
            for piece in pieces_of(self.parts, 0, self.quantized_weights):
                some = weights.buffer[piece.where]
                some.copy_(self.pair.on(piece.quantizer).weight_map(some))
        return Member(
            model, weights, self._optimizer, self.lr, recipe, self.execution, self.layout, self.update, self.pair
        )

    def _new_buffers(self, members: int) -> tuple[Tensor, Tensor]:
        """For latent and for quantized weights, a row a member; apart, since a checkpoint takes the whole of one."""
        latent = self._like.new_zeros(members, self._share * self.layout.ranks.size)
        return latent, torch.zeros_like(latent)

    def _trial(self, mode: str, loss: Loss, inputs: Tensor, targets: Tensor) -> tuple[str, Callable[[], float]]:
        member = self.member(self.recipes[0])
        member.execute(mode)
        return mode, lambda: member.step(inputs, targets, loss, 1.0).item()  # waits for the GPU


def _common_quantizer(parts: Sequence[Part]) -> Quantizer:
    """A quantizer with the ranges of all parts, for what is asked of every one of them."""
    ranges = torch.cat([torch.as_tensor(part.quantizer.max, dtype=torch.float64).cpu().reshape(-1) for part in parts])
    first = parts[0].quantizer
    return first.with_max(ranges.unique())

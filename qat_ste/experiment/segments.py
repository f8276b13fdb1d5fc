"""Segments: counterparts that start again from the reference's mapped state every K steps; see docs/segments.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.counterparts import MemberSpec
from qat_ste.experiment.member import Member
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.randomness import seed_noise
from qat_ste.experiment.state_transfer import StateTransfer
from qat_ste.fake_quant.flat_layout import Chunk, group_chunks, level_indices, split_into_chunks

COLUMNS = ("distance", "path", "agreeing", "floor")  # of a finished segment, by tensor: sums over weights


@dataclass(eq=False)
class Segmented:
    """One counterpart in segments of ``length`` steps.

    Attributes:
        names: of the counterpart; several where their specifications are equal.
        number: of the same counterpart in the whole run.
        member: the network; None where other ranks train it.
        steps: ends of the finished segments.
        finished: their sums by tensor on this rank, float64 (tensors x COLUMNS); ``sums``: reported ones, on all ranks.
    """

    length: int
    number: int
    names: list[str]
    spec: MemberSpec
    member: Member | None = None
    steps: list[int] = field(default_factory=list)
    finished: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # mean over the segment, less that of the reference


class Segments:
    """All counterparts of a cohort in segments, beside its whole run.

    Args:
        cohort: with its members made; the reference is trained there.
        lengths: steps of a segment; every counterpart is trained once more for each.

    ``parts`` lists the counterparts. Each rank measures its share of the weights of the members that it trains.
    """

    def __init__(self, cohort: Cohort, lengths: list[int], steps: int) -> None:
        self.cohort = cohort
        numbers = sorted(set(cohort.counterparts.values()))
        self.parts = [
            Segmented(length, number, [n for n, m in cohort.counterparts.items() if m == number], cohort.specs[number])
            for length in lengths
            for number in numbers
        ]
        layout, size = cohort.layout, cohort.quantized_weights
        share = -(-size // layout.shard.ranks)
        self._where = slice(min(share * layout.shard.rank, size), min(share * (layout.shard.rank + 1), size))
        chunks = self._chunks = self._chunks_of(cohort.local.get(0))  # lengths are in units of the reference's scales
        self._groups = group_chunks(chunks, cohort.slices)
        self._local = [part for place, part in enumerate(self.parts) if layout.trains(place)]
        for part in self._local:
            part.member = cohort.member(part.spec)
        self._members: list[Member] = [part.member for part in self._local if part.member is not None]
        self._previous = [member.weights.buffer[self._where].clone() for member in self._members]
        self._path = torch.zeros(len(self._local), len(chunks), dtype=torch.float64, device=cohort.device)
        self.transfer = StateTransfer(cohort)
        self.losses = torch.zeros(len(self.parts), steps, device=cohort.device)  # on this rank's share of the batch

    def _chunks_of(self, member: Member | None) -> list[Chunk]:
        """Chunks of this rank's share of the weights, with the member's scales."""
        scales = None if member is None else member.weights.scales
        return split_into_chunks(self.cohort.tensors, self._where.start, self._where.stop, scales)

    def execute(self, mode: str) -> None:
        """Computes the passes of all members in this way of ``EXECUTIONS`` from now on."""
        for member in self._members:
            member.execute(mode)

    def step(self, step: int, inputs: Tensor, targets: Tensor, loss: Loss, factor: float, seed: int) -> None:
        """Optimizer step ``step`` (0, 1, …) of every member."""
        for place, part in enumerate(self.parts):
            if part.member is not None:
                seed_noise(seed, step, self.cohort.device, self.cohort.layout.shard.rank)
                self.losses[place, step] = part.member.step(inputs, targets, loss, factor)

    def enter(self, before: int) -> None:
        """Switches to the estimator of the cohort's stage, as the whole run did; ``before`` is the stage before."""
        for part, member in zip(self._local, self._members, strict=True):
            self.cohort.switch(member, part.spec, before)
        self._remember(self._local)

    @torch.no_grad()
    def restart(self, step: int) -> None:
        """Before step ``step``: starts segments whose length divides it from the reference's mapped state."""
        starting = [part for part in self.parts if step and step % part.length == 0]
        if not starting:
            return
        reference = self.transfer.reference()
        for part in starting:
            if part.member is not None:
                self.transfer.give(part.member, part.number, reference)
        self._remember(starting)

    @torch.no_grad()
    def observe(self, done: int) -> None:
        """Records paths after optimizer step ``done`` (1, 2, …), and the segments that end with it."""
        for row, (member, previous) in enumerate(zip(self._members, self._previous, strict=True)):
            weights = member.weights.buffer[self._where]
            previous.sub_(weights).abs_()  # now holds |Δw|
            self._path[row] += self._sums(previous)
            previous.copy_(weights)
        ending = [part for part in self.parts if done % part.length == 0]
        if ending:
            reference = self.transfer.weights()
            for part in ending:
                part.steps.append(done)
                part.finished.append(self._finish(part, reference))

    def _sums(self, values: Tensor) -> Tensor:
        """Σ values/max by chunk, float64."""
        sums = [(values[c.where] / c.quantizer.max).sum(dtype=torch.float64) for c in self._chunks]
        return torch.stack(sums)

    def _finish(self, part: Segmented, reference: Tensor) -> Tensor:
        """The sums of the segment that ends now, on this rank's share; zeros where other ranks train the member."""
        by_tensor = torch.zeros(len(self.cohort.tensors), len(COLUMNS), dtype=torch.float64, device=self.cohort.device)
        if part.member is None:
            return by_tensor
        row = self._local.index(part)
        weights, w_ref = part.member.weights.buffer[self._where], reference[self._where]
        mapped, floor = self._mapped(part, w_ref)
        groups = self._groups
        if self.cohort.scales_move:
            groups = group_chunks(self._chunks_of(part.member), weights)
        levels = zip(level_indices(groups, weights), level_indices(self._groups, w_ref), strict=True)
        agreeing = torch.cat([(a == b).double() for a, b in levels])
        agreements = torch.stack([agreeing[chunk.where].sum() for chunk in self._chunks])
        columns = self._sums((mapped - weights).abs()), self._path[row], agreements, self._sums(floor)
        tensors = torch.tensor([chunk.tensor for chunk in self._chunks], device=self.cohort.device)
        by_tensor.index_add_(0, tensors, torch.stack(columns, 1))
        self._path[row] = 0
        return by_tensor

    def _mapped(self, part: Segmented, w_ref: Tensor) -> tuple[Tensor, Tensor]:
        """R(w_ref), and the distance by which rounding of w_ref and of R(w_ref) alone moves it, on average."""
        weight_map = self.cohort.weight_map(part.number)
        if weight_map is None:
            return w_ref, torch.zeros_like(w_ref)
        equivalent = self.cohort.equivalent_now(part.spec)
        mapped, slope = torch.empty_like(w_ref), torch.empty_like(w_ref)
        for chunk in self._chunks:
            values = w_ref[chunk.where]
            mapped[chunk.where] = weight_map(values, chunk.quantizer)
            slope[chunk.where] = equivalent.on(chunk.quantizer).slope(values)
        return mapped, (_spacing(w_ref) * slope + _spacing(mapped)) / 4  # rounding errors are uniform to half a spacing

    def _remember(self, parts: list[Segmented]) -> None:
        for row, part in enumerate(self._local):
            if part in parts and part.member is not None:
                self._previous[row].copy_(part.member.weights.buffer[self._where])

    def report(self, losses: Tensor) -> list[dict[str, Any]]:
        """A row for each length and segment that ended since the last call, in the order of their ends.

        Args:
            losses: of the whole run, members x steps, on this rank's share of the batch.
        """
        new = [(part, place) for part in self.parts for place in range(len(part.sums), len(part.steps))]
        if not new:
            return []
        finished = self.cohort.layout.ranks.sum(torch.stack([part.finished[place] for part, place in new])).cpu()
        differences = self._loss_differences(losses, new)
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for (part, place), sums, difference in zip(new, finished, differences, strict=True):
            part.sums.append(sums)
            part.losses.append(difference)
            part.finished[place] = _NOTHING
            row = rows.setdefault((part.steps[place], part.length), {"step": part.steps[place], "segment": part.length})
            distance, path, agreeing, _ = sums.sum(0).tolist()
            values = {
                "weight_alignment_error": distance / path if path else None,
                "path": path / self.cohort.quantized_weights,
                "quantized_weight_agreement": agreeing / self.cohort.quantized_weights,
                "loss_difference": difference,
            }
            for name in part.names:
                row |= {f"{name}@{part.length}/{key}": value for key, value in values.items()}
        return [rows[key] for key in sorted(rows)]

    def _loss_differences(self, losses: Tensor, new: list[tuple[Segmented, int]]) -> list[float]:
        """Mean loss of each segment less the reference's; losses are 0 on ranks that do not train a member."""
        means = []
        for part, place in new:
            steps = slice(part.steps[place] - part.length, part.steps[place])
            row = self.parts.index(part)
            means.append(torch.stack([self.losses[row, steps].mean(), losses[0, steps].mean()]))
        own, reference = self.cohort.layout.over_batch(torch.stack(means)).T
        return (own - reference).tolist()

    def state_dict(self) -> dict[str, Any]:
        """What this rank measured; call ``report`` before."""
        of_parts = [{"sums": _stacked(part.sums, self._shape), "losses": part.losses} for part in self.parts]
        return {"path": self._path, "losses": self.losses, "parts": of_parts}

    def example(self, done: int) -> dict[str, Any]:
        """A state with the shapes of one that is saved after ``done`` steps."""
        of_parts = [
            {"sums": torch.zeros(done // part.length, *self._shape, dtype=torch.float64),
             "losses": [0.0] * (done // part.length)}
            for part in self.parts
        ]  # fmt: skip
        return {"path": self._path, "losses": self.losses, "parts": of_parts}

    def load_state_dict(self, state: dict[str, Any], done: int) -> None:
        """Restores a saved state after ``done`` steps; the members must be restored before."""
        self._path.copy_(state["path"])
        self.losses.copy_(state["losses"])
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.steps = list(range(part.length, done + 1, part.length))
            part.sums, part.losses = list(saved["sums"].clone()), list(saved["losses"])
            part.finished = [_NOTHING] * len(part.steps)
        self._remember(self._local)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.cohort.tensors), len(COLUMNS)


_NOTHING = torch.empty(0)


def _stacked(tensors: list[Tensor], shape: tuple[int, int]) -> Tensor:
    return torch.stack(tensors) if tensors else torch.zeros(0, *shape, dtype=torch.float64)


def _spacing(w: Tensor) -> Tensor:
    """The distance of each number to the next larger one of its type."""
    return torch.nextafter(w.abs(), torch.full_like(w, torch.inf)) - w.abs()

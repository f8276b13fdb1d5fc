"""The processes that train one cohort together: which members each trains, and their communication."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from qat_ste.base.errors import ArgumentError, OneOf, require
from qat_ste.base.sections import PLACEMENTS
from qat_ste.data.dataset import Shard


class Ranks:
    """All processes of ``torch.distributed``'s default group, or this process alone without one.

    Where that group has NCCL alone, tensors on the CPU pass through a group of gloo.
    """

    def __init__(self) -> None:
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._on_cpu: Any = None  # a group; None is the default one
        if self.size > 1 and "cpu:" not in dist.get_backend_config():
            self._on_cpu = gloo_group(dist.group.WORLD)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, returned on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self._on_cpu if values.device.type == "cpu" else None)
        return values

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any rank sets it."""
        if self.size == 1:
            return list(flags)
        largest = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self._on_cpu)
        return [bool(flag) for flag in largest.tolist()]

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks on rank 0, None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, group=self._on_cpu)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on each rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self._on_cpu)
        return box[0]


@cache
def gloo_group(_: Any) -> Any:
    """A group of all processes for tensors on the CPU; all must call this, and get the same one each time."""
    return dist.new_group(backend="gloo")


class Layout:
    """Which of ``members`` networks this rank trains, on which shard of a batch, and which weights it measures.

    Args:
        placement: ``together``: every rank trains all members and the batch is split. ``spread``: the ranks form equal
            groups, at most one per member; each group trains its members and splits the batch.

    Either way each rank measures one slice of the weights of *all* members, so the cost and memory of the metrics
    fall with the number of ranks.

    Raises:
        ArgumentError: unknown placement.
    """

    def __init__(self, ranks: Ranks, placement: str, members: int) -> None:
        require(OneOf(PLACEMENTS), placement=placement)
        self.ranks = ranks
        size = ranks.size
        self.groups = max(n for n in range(1, members + 1) if size % n == 0) if placement == "spread" else 1
        self._group_size = size // self.groups
        self.group, place = divmod(ranks.rank, self._group_size)
        self.shard = Shard(place, self._group_size)
        self.data_group: Any = None
        self.peers: Any = None
        if self.groups > 1:  # every rank must take part in making every group
            groups = [range(g * self._group_size, (g + 1) * self._group_size) for g in range(self.groups)]
            peers = [range(p, size, self._group_size) for p in range(self._group_size)]
            self.data_group = [dist.new_group(list(group)) for group in groups][self.group]
            self.peers = [dist.new_group(list(group)) for group in peers][place]

    def trains(self, member: int) -> bool:
        """Whether this rank trains the member."""
        return member % self.groups == self.group

    def over_batch(self, losses: Tensor) -> Tensor:
        """Means over the global batch, from the means over each rank's shard."""
        return self.ranks.sum(losses / self.shard.ranks)

    def slice_size(self, weights: int) -> int:
        """The number of weights that a rank measures, of ``weights`` in all; the last rank measures fewer."""
        return -(-weights // self.ranks.size)

    def scatter(self, member: int, buffer: Tensor | None, out: Tensor) -> None:
        """Sends each rank its slice of a member's ``buffer``, which is None where the member is not trained."""
        owner = self._owner(member, 0)
        slices = list(buffer.split(len(out))) if buffer is not None and owner == self.ranks.rank else None
        dist.scatter(out, slices, src=owner)

    def broadcast(self, member: int, values: Tensor) -> None:
        """Sends a tensor of a member from the ranks that train it to those that do not, in place."""
        if self.groups > 1:
            dist.broadcast(values, src=self._owner(member, self.shard.rank), group=self.peers)

    def share_outputs(self, outputs: dict[int, Any], members: int) -> list[Any]:
        """The outputs of all members on this rank's batch, from the outputs of the members trained here.

        Raises:
            ArgumentError: an output is neither a tensor nor made of tensors in tuples, lists and dictionaries.
        """
        if self.groups == 1:
            return [outputs[member] for member in range(members)]
        like = next(iter(outputs.values()))
        shared = []
        for member in range(members):
            leaves, form = tree_flatten(outputs.get(member, like))
            if others := [leaf for leaf in leaves if not isinstance(leaf, Tensor)]:
                allowed = f"together where the model returns a {type(others[0]).__name__}"
                raise ArgumentError("placement", "spread", allowed)
            leaves = [leaf.contiguous().clone() for leaf in leaves]
            for leaf in leaves:
                dist.broadcast(leaf, src=self._owner(member, self.shard.rank), group=self.peers)
            shared.append(tree_unflatten(leaves, form))
        return shared

    def _owner(self, member: int, place: int) -> int:
        return (member % self.groups) * self._group_size + place

"""The reference and its counterparts: models that differ in estimator, initial weights and learning rate alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from qat_ste.divergence import Part, WeightMap, pieces_of
from qat_ste.equivalence import SteEquivalent
from qat_ste.estimators import Estimator, Ste
from qat_ste.fake_quantize import FakeQuantize, quantized_tensors
from qat_ste.optimizers import Equivalence, equivalence_of
from qat_ste.quantizer import UniformQuantizer
from qat_ste.ranks import Layout, Ranks

PRECISIONS = ("fp32", "bf16")
COUNTERPARTS = ("ste", "naive", "jitter", "replica")
Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[..., optim.Optimizer]


def jitter_percent(name: str) -> float | None:
    """Change of learning rate in per cent of the counterpart ``jitter`` (1) or ``jitter_<percent>``; else None."""
    if name == "jitter":
        return 1.0
    head, _, percent = name.partition("_")
    try:
        return float(percent) if head == "jitter" and float(percent) > 0 else None
    except ValueError:
        return None


def unknown_counterparts(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no counterpart."""
    return [name for name in names if name not in COUNTERPARTS and jitter_percent(name) is None]


@dataclass(frozen=True)
class Recipe:
    """What a member is made from; equal recipes give the same run."""

    estimator: Estimator
    remap: bool = False  # initial quantized weights M(w₀) instead of w₀
    lr_factor: float = 1.0  # on quantized tensors
    lr_jitter: float = 1.0  # on all tensors

    @classmethod
    def of(cls, name: str, estimator: Estimator, equivalence: Equivalence, alpha: float) -> Recipe:
        """The recipe of the counterpart with this name, for a reference trained with ``estimator``."""
        percent = jitter_percent(name)
        if percent is not None:
            return cls(estimator, lr_jitter=1 + percent / 100)
        if name == "replica":
            return cls(estimator)
        if name == "ste" and equivalence is Equivalence.REMAP:
            return cls(Ste(), remap=True, lr_factor=alpha)
        return cls(Ste())


def parts_of(model: nn.Module) -> list[Part]:
    """Where each quantized tensor of the model lies in a flat buffer of them all; tied weights are there once."""
    parts: list[Part] = []
    seen, start = set(), 0
    for name, parameter, fake_quantize in quantized_tensors(model):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        quantizer = fake_quantize.quantizer
        if isinstance(quantizer.max, Tensor):
            max_ = quantizer.max.to(parameter.device).expand_as(parameter).reshape(-1)
            quantizer = UniformQuantizer(quantizer.bits, max_, quantizer.saturation)
        parts.append(Part(name, start, start + parameter.numel(), quantizer))
        start += parameter.numel()
    return parts


class FlatWeights:
    """All quantized latent weights of a model in one buffer, of which the model's parameters become views.

    Optimizers work in place, so the buffer is always current and metrics read it without a copy.

    Args:
        size: length of the buffer; what the weights leave of it is zero.
    """

    def __init__(self, model: nn.Module, parts: Sequence[Part], size: int) -> None:
        by_name = {name: (parameter, fake_quantize) for name, parameter, fake_quantize in quantized_tensors(model)}
        self.parameters = [by_name[part.name][0] for part in parts]
        self._parts, self._quantizers = parts, [by_name[part.name][1] for part in parts]
        first = self.parameters[0]
        self.buffer = torch.zeros(size, dtype=first.dtype, device=first.device)
        for parameter, part in zip(self.parameters, parts, strict=True):
            view = self.buffer[part.start : part.stop].view(parameter.shape)
            parameter.data = view.copy_(parameter.detach())

    def remember(self, index: Tensor) -> None:
        """Spares the next forward pass the search for the levels of all weights, whose numbers these are."""
        for parameter, part, fake_quantize in zip(self.parameters, self._parts, self._quantizers, strict=True):
            fake_quantize.remember(index[part.start : part.stop].view(parameter.shape), parameter)


@dataclass(frozen=True)
class Execution:
    """How a training step is computed.

    Args:
        precision: ``fp32``, or ``bf16`` for forward and backward passes under autocast, whose rounding is larger
            than most of what is measured here; latent weights, maps and metrics stay as they are.
        accumulate: parts that a rank's batch is worked through in; their gradients are those of the whole, but for
            layers that look across the batch.
        compile: whether forward and backward passes go through ``torch.compile``.
        sync_batchnorm: whether batch norm takes its statistics over all ranks of a member (CUDA).

    Raises:
        ValueError: an argument is out of its bounds.
    """

    precision: str = "fp32"
    accumulate: int = 1
    compile: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number of at least 1, got {self.accumulate!r}")


class Member:
    """One model of the cohort with its optimizer."""

    def __init__(
        self,
        model: nn.Module,
        weights: FlatWeights,
        optimizer: MakeOptimizer,
        lr: float,
        recipe: Recipe,
        execution: Execution,
        layout: Layout,
    ) -> None:
        self.model, self.weights, self.execution = model, weights, execution
        quantized = {id(parameter) for parameter in weights.parameters}
        others = [p for p in model.parameters() if id(p) not in quantized and p.requires_grad]
        lr = lr * recipe.lr_jitter
        groups = [{"params": weights.parameters, "lr": lr * recipe.lr_factor}, {"params": others, "lr": lr}]
        self.optimizer = optimizer([group for group in groups if group["params"]], lr=lr)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._parallel = None
        if layout.shard.ranks > 1:
            self._parallel = DistributedDataParallel(model, process_group=layout.data_group)
        forward: nn.Module = self._parallel or model
        self._forward = torch.compile(forward) if execution.compile else forward
        self._autocast = partial(
            torch.autocast, weights.buffer.device.type, torch.bfloat16, enabled=execution.precision == "bf16"
        )

    def step(self, inputs: Tensor, targets: Tensor, loss: Loss, lr_factor: float, l2: L2Penalty | None) -> Tensor:
        """One training step; returns the loss without the penalty, detached."""
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * lr_factor
        self.optimizer.zero_grad()
        value: Tensor | float = 0.0
        parts = self.execution.accumulate
        chunks = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True))
        for number, (some, their_targets) in enumerate(chunks, 1):
            wait = self._parallel is not None and number < len(chunks)
            with cast(DistributedDataParallel, self._parallel).no_sync() if wait else nullcontext():
                with self._autocast():
                    part = loss(self._forward(some), their_targets)
                if len(chunks) > 1:
                    part = part * (len(some) / len(inputs))
                part.backward()
            value = value + part.detach()
        if l2 is not None:
            l2.add_gradient(self.model)
        self.optimizer.step()
        return cast(Tensor, value)

    def predict(self, inputs: Tensor) -> Tensor:
        """Outputs in the precision of training, as float32."""
        with self._autocast():
            return self.model(inputs).float()

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class L2Penalty:
    """strength·Σw² over the latent values of the parameters whose names match a pattern (arXiv 2405.05171).

    Its gradient 2·strength·w is added to what the estimator lets through, and is not multiplied by g itself.
    """

    strength: float
    include: Sequence[str] = ("*",)

    @torch.no_grad()
    def add_gradient(self, model: nn.Module) -> None:
        gradients: list[Tensor] = []
        weights: list[Tensor] = []
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and self._wanted(name):
                gradients.append(parameter.grad)
                weights.append(parameter)
        if weights:
            torch._foreach_add_(gradients, weights, alpha=2 * self.strength)

    def _wanted(self, name: str) -> bool:
        name = name.replace("parametrizations.", "").removesuffix(".original")
        return any(fnmatchcase(name, pattern) for pattern in self.include)


class Cohort:
    """A reference and its counterparts, ready to be trained on the same batches.

    Args:
        model: the reference, its weights quantized already; every member starts as a copy of it.
        optimizer: called with parameter groups and ``lr=``, once a member.
        lr: the reference's learning rate η.
        counterparts: any of ``ste``, ``naive``, ``jitter``, ``jitter_<percent>``, ``replica``.
        ranks, placement: who trains them; see ``Layout``.

    Members are numbered, the reference is 0; ``names`` has each one's number, ``recipes`` what each is made from.
    Counterparts with the same recipe are the same run by construction: trained once, found under each name.

    Raises:
        ValueError: an unknown counterpart, or ``ste`` asked for where the theorem cannot apply.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: MakeOptimizer,
        lr: float,
        counterparts: Sequence[str],
        execution: Execution = Execution(),
        ranks: Ranks | None = None,
        placement: str = "together",
    ) -> None:
        unknown = unknown_counterparts(counterparts)
        if unknown:
            raise ValueError(
                f"counterparts: {', '.join(map(repr, unknown))} unknown, allowed are "
                f"{', '.join(COUNTERPARTS)} and jitter_<percent>"
            )
        estimator = next(quantized_tensors(model))[2].estimator
        self.parts = parts_of(model)
        self.quantized_weights = self.parts[-1].stop
        self.lr = lr
        self.equivalence = equivalence_of(optimizer([{"params": [torch.zeros(2, 2, requires_grad=True)]}], lr=lr))
        self.pair = SteEquivalent(estimator, _common_quantizer(self.parts)) if "ste" in counterparts else None
        alpha = self.pair.lr_factor if self.pair else 1.0
        self.recipes, self.names = [Recipe(estimator)], {"reference": 0}
        for name in counterparts:
            recipe = Recipe.of(name, estimator, self.equivalence, alpha)
            if recipe not in self.recipes[1:]:
                self.recipes.append(recipe)
            self.names[name] = self.recipes.index(recipe, 1)
        self.layout = Layout(ranks or Ranks(), placement, len(self.recipes))
        share = self.layout.slice_size(self.quantized_weights)
        self.first = min(share * self.layout.ranks.rank, self.quantized_weights)
        self.last = min(self.first + share, self.quantized_weights)
        self.device = next(model.parameters()).device
        self._model, self._optimizer, self.execution, self._share = model, optimizer, execution, share

    @cached_property
    def local(self) -> dict[int, Member]:
        """Members that this rank trains, by number; made when first asked for."""
        if self.execution.sync_batchnorm:
            self._model = nn.SyncBatchNorm.convert_sync_batchnorm(self._model, self.layout.data_group)
        return {
            number: self._member(recipe) for number, recipe in enumerate(self.recipes) if self.layout.trains(number)
        }

    @cached_property
    def slices(self) -> list[Tensor]:
        """This rank's share of every member's weights, ``first`` to ``last``."""
        self.update_slices()
        return [values[: self.last - self.first] for values in self._slices]

    @property
    def counterparts(self) -> dict[str, int]:
        """Number of each counterpart, by name."""
        return {name: number for name, number in self.names.items() if name != "reference"}

    def update_slices(self) -> None:
        """Brings ``slices`` up to date after a step; where a rank trains all members they are views anyway."""
        if self.layout.groups > 1:
            for number, out in enumerate(self._slices):
                member = self.local.get(number)
                self.layout.scatter(number, member.weights.buffer if member else None, out)

    def weight_map(self, number: int) -> WeightMap | None:
        """R: M where the member was re-mapped, None (identity) otherwise."""
        pair = self.pair
        if pair is None or not self.recipes[number].remap:
            return None
        return lambda w, quantizer: pair.on(quantizer).weight_map(w)

    def _member(self, recipe: Recipe) -> Member:
        model = copy.deepcopy(self._model)
        for module in model.modules():
            if isinstance(module, FakeQuantize):
                module.estimator = recipe.estimator
        weights = FlatWeights(model, self.parts, self._share * self.layout.ranks.size)
        if recipe.remap and self.pair is not None:
            for piece in pieces_of(self.parts, 0, self.quantized_weights):
                some = weights.buffer[piece.where]
                some.copy_(self.pair.on(piece.quantizer).weight_map(some))
        return Member(model, weights, self._optimizer, self.lr, recipe, self.execution, self.layout)

    @cached_property
    def _slices(self) -> list[Tensor]:
        """Of equal size on all ranks; where each rank trains all members, views of their weights."""
        share, first = self._share, self._share * self.layout.ranks.rank
        if self.layout.groups == 1:
            return [self.local[number].weights.buffer[first : first + share] for number in range(len(self.recipes))]
        like = next(iter(self.local.values())).weights.buffer
        return [torch.zeros_like(like[:share]) for _ in self.recipes]


def _common_quantizer(parts: Sequence[Part]) -> UniformQuantizer:
    """A quantizer with the ranges of all parts, for what is asked of every one of them."""
    ranges = torch.cat([torch.as_tensor(part.quantizer.max, dtype=torch.float64).reshape(-1) for part in parts])
    first = parts[0].quantizer
    return UniformQuantizer(first.bits, ranges.unique(), first.saturation)

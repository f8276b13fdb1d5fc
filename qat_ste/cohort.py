"""The reference and its counterparts: models that differ in estimator, initial weights and learning rate alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn, optim
from torch.nn.utils import parametrize

from qat_ste.equivalence import SteEquivalent
from qat_ste.estimators import Estimator, Ste
from qat_ste.fake_quantize import FakeQuantize, quantized_tensors
from qat_ste.optimizers import Equivalence, equivalence_of
from qat_ste.quantizer import UniformQuantizer

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


class FlatWeights:
    """All quantized latent weights of a model in one buffer, of which the model's parameters become views.

    Optimizers work in place, so the buffer is always current and metrics read it without a copy.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters, ranges = [], []
        self.parts: dict[str, slice] = {}
        first, seen, quantizers = 0, set(), []
        for name, parameter, fake_quantize in quantized_tensors(model):
            if id(parameter) in seen:  # tied weights are counted once
                continue
            seen.add(id(parameter))
            self.parts[name] = slice(first, first + parameter.numel())
            first += parameter.numel()
            parameters.append(parameter)
            quantizers.append(fake_quantize.quantizer)
            max_ = torch.as_tensor(fake_quantize.quantizer.max, dtype=torch.float64, device=parameter.device)
            ranges.append(max_.expand_as(parameter).reshape(-1))
        self.parameters = parameters
        self.buffer = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        for parameter, part in zip(parameters, self.parts.values(), strict=True):
            parameter.data = self.buffer[part].view(parameter.shape)
        self.quantizer = UniformQuantizer(quantizers[0].bits, torch.cat(ranges), quantizers[0].saturation)


class Member:
    """One model of the cohort with its optimizer."""

    def __init__(self, model: nn.Module, optimizer: MakeOptimizer, lr: float, recipe: Recipe) -> None:
        self.model = model
        self.recipe = recipe
        self.weights = FlatWeights(model)
        quantized = {id(parameter) for parameter in self.weights.parameters}
        others = [p for p in model.parameters() if id(p) not in quantized and p.requires_grad]
        lr = lr * recipe.lr_jitter
        groups = [{"params": self.weights.parameters, "lr": lr * recipe.lr_factor}, {"params": others, "lr": lr}]
        self.optimizer = optimizer([group for group in groups if group["params"]], lr=lr)
        self.lrs = [group["lr"] for group in self.optimizer.param_groups]

    def step(self, inputs: Tensor, targets: Tensor, loss: Loss, lr_factor: float, l2: L2Penalty | None) -> Tensor:
        """One training step; returns the loss without the penalty, detached."""
        for group, lr in zip(self.optimizer.param_groups, self.lrs, strict=True):
            group["lr"] = lr * lr_factor
        value = loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        value.backward()
        if l2 is not None:
            l2.add_gradient(self.model)
        self.optimizer.step()
        return value.detach()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> Evaluation:
        """Outputs on all batches in evaluation mode; the loss is the mean over batches, weighted by their size."""
        training = self.model.training
        self.model.eval()
        outputs, targets, losses, sizes = [], [], [], []
        with parametrize.cached():
            for inputs, target in batches:
                outputs.append(self.model(inputs))
                losses.append(loss(outputs[-1], target))
                targets.append(target)
                sizes.append(len(target))
        self.model.train(training)
        mean = float((torch.stack(losses).double().cpu() * torch.tensor(sizes)).sum() / sum(sizes))
        return Evaluation(torch.cat(outputs), torch.cat(targets), mean)


@dataclass(frozen=True)
class Evaluation:
    """A model's outputs on all validation inputs, what they should be, and the mean loss."""

    outputs: Tensor
    targets: Tensor
    loss: float

    @property
    def accuracy(self) -> float | None:
        """Share of inputs whose arg-max is the target; None where targets are no class numbers."""
        if self.outputs.ndim != 2 or self.targets.ndim != 1 or self.targets.is_floating_point():
            return None
        return (self.outputs.argmax(1) == self.targets).double().mean().item()


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

    Members with the same recipe are the same run by construction: trained once, found under each name.

    Raises:
        ValueError: an unknown counterpart, or ``ste`` asked for where the theorem cannot apply.
    """

    def __init__(self, model: nn.Module, optimizer: MakeOptimizer, lr: float, counterparts: Sequence[str]) -> None:
        unknown = unknown_counterparts(counterparts)
        if unknown:
            raise ValueError(
                f"counterparts: {', '.join(map(repr, unknown))} unknown, allowed are "
                f"{', '.join(COUNTERPARTS)} and jitter_<percent>"
            )
        estimator = next(quantized_tensors(model))[2].estimator
        self.reference = Member(copy.deepcopy(model), optimizer, lr, Recipe(estimator))
        self.equivalence = equivalence_of(self.reference.optimizer)
        self.pair = SteEquivalent(estimator, self.reference.weights.quantizer) if "ste" in counterparts else None
        alpha = self.pair.lr_factor if self.pair else 1.0
        recipes = {name: Recipe.of(name, estimator, self.equivalence, alpha) for name in counterparts}
        trained = {recipe: self._counterpart(model, optimizer, lr, recipe) for recipe in recipes.values()}
        self.counterparts = {name: trained[recipe] for name, recipe in recipes.items()}

    @property
    def members(self) -> list[Member]:
        """The reference, then each counterpart that is trained, once."""
        return [self.reference, *dict.fromkeys(self.counterparts.values())]

    def weight_map(self, member: Member) -> Callable[[Tensor], Tensor] | None:
        """R: M where the member was re-mapped, None (identity) otherwise."""
        return self.pair.weight_map if member.recipe.remap and self.pair else None

    def _counterpart(self, model: nn.Module, optimizer: MakeOptimizer, lr: float, recipe: Recipe) -> Member:
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, FakeQuantize):
                module.estimator = recipe.estimator
        member = Member(model, optimizer, lr, recipe)
        if recipe.remap and self.pair is not None:
            member.weights.buffer.copy_(self.pair.weight_map(member.weights.buffer))
        return member

"""From a configuration to the parts of a comparison, with every fault found before anything is trained."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat_ste.app.components import ComponentBuilder, made_optimizer, make_estimator, make_logger, make_optimizer
from qat_ste.app.schema import ConfigError, length
from qat_ste.base.errors import STEPS
from qat_ste.data.dataset import Dataset, Shard
from qat_ste.estimators import Estimator, Ste
from qat_ste.experiment.counterparts import COUNTERPARTS, Recipe, adjust, unknown_counterparts
from qat_ste.experiment.gradient_update import Clipping, L2Penalty, WeightDecay
from qat_ste.experiment.member import Update
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from qat_ste.optimizers import Adjustment, MakeOptimizer, adjustment_of
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.quantizer import Quantizer


@dataclass(frozen=True)
class Parts:
    """What ``compare`` is called with, instantiated."""

    estimator: Estimator
    optimizer: MakeOptimizer
    dataset: Dataset
    build_model: Callable[[], nn.Module]
    steps: int
    steps_per_epoch: int
    device: torch.device
    adjustment: Adjustment
    members: int


def levels_of(cfg: DictConfig) -> Any:
    """The quantizer's levels as plain values."""
    levels = cfg.quantizer.levels
    return OmegaConf.to_container(levels) if OmegaConf.is_config(levels) else levels


def update_of(cfg: DictConfig) -> Update:
    """What is done between the backward pass and the optimizer's step."""
    train, include = cfg.train, tuple(cfg.train.l2_include)
    return Update(
        clipping=Clipping(train.clip_norm, train.clip_at) if train.clip_norm else None,
        l2=L2Penalty(train.l2, include) if train.l2 else None,
        weight_decay=WeightDecay(train.weight_decay, include) if train.weight_decay else None,
    )


class Preparation:
    """Builds the parts and collects what is wrong with them.

    Args:
        default: the packaged value of a key ("estimator.k"), for the example in a message.
        known: problems to be told with those found.
    """

    def __init__(
        self, cfg: DictConfig, default: Callable[[str], Any] = lambda key: None, known: Sequence[Any] = ()
    ) -> None:
        self.found = ComponentBuilder(cfg, default, known)
        self.cfg, self.problems = self.found.cfg, self.found.problems

    def parts(self) -> Parts:
        """Everything, checked.

        Raises:
            ConfigError: with all problems found.
        """
        cfg = self.cfg
        unknown = unknown_counterparts(cfg.counterparts)
        if unknown or not cfg.counterparts:
            allowed = f"allowed are {', '.join(COUNTERPARTS)} and jitter_<percent>, at least one"
            self.found.add(
                "counterparts", f"{', '.join(unknown) or 'nothing'} is no counterpart, {allowed}", "[ste,naive,jitter]"
            )
        estimator = self._estimator()
        optimizer = self._optimizer()
        device = self._device()
        dataset = self.found.build("dataset")
        build_model = model = steps_per_epoch = steps = None
        if dataset is not None:
            build_model = self._model_builder(dataset)
            steps_per_epoch = self._steps_per_epoch(dataset)
            if estimator is not None and build_model is not None:
                model = self._checked_model(build_model, estimator)
            if steps_per_epoch is not None:
                steps_per_epoch = cfg.train.steps_per_epoch or steps_per_epoch
                steps = length(cfg.train, steps_per_epoch)
                if steps not in STEPS:
                    key = "train.steps" if cfg.train.epochs is None else "train.epochs"
                    self.found.add(key, f"comes to {steps} steps; the number of steps must be {STEPS}", "10")
        self.found.build("logger", make_logger)
        if optimizer is not None and model is not None and not self.problems:
            self._check_optimizer(model, optimizer)
        if self.problems:
            raise ConfigError(self.problems)
        assert estimator is not None and optimizer is not None and device is not None
        assert dataset is not None and build_model is not None and steps_per_epoch is not None and steps is not None
        settings = cfg.quantizer
        quantizer = make_quantizer(1.0, settings.saturation, bits=settings.bits, levels=levels_of(cfg))
        adjustment, pair = adjust(adjustment_of(optimizer, cfg.optimizer.lr), estimator, quantizer)
        mirrors = update_of(cfg).mirrors(adjustment.equivalence)
        recipes = [Recipe.of(name, estimator, adjustment.equivalence, pair, mirrors) for name in cfg.counterparts]
        # The reference and its counterparts, two names of one run counted once.
        members = 1 + len([recipe for number, recipe in enumerate(recipes) if recipe not in recipes[:number]])
        return Parts(estimator, optimizer, dataset, build_model, steps, steps_per_epoch, device, adjustment, members)

    def rule(self) -> tuple[Estimator, Quantizer, MakeOptimizer]:
        """Estimator, quantizer and optimizer, checked; neither model nor data set is looked at.

        Raises:
            ConfigError: with all problems found.
        """
        estimator, optimizer = self._estimator(), self._optimizer()
        quantizer = None if estimator is None else self._quantizer(estimator)
        if not self.problems:
            groups = [{"params": [torch.zeros(2, 2, requires_grad=True)]}]
            self.found.build("optimizer", lambda node: made_optimizer(make_optimizer(node), groups, node.lr))
        if self.problems or estimator is None or quantizer is None or optimizer is None:
            raise ConfigError(self.problems)
        return estimator, quantizer, optimizer

    def _optimizer(self) -> MakeOptimizer | None:
        found: MakeOptimizer | None = self.found.build("optimizer", make_optimizer)
        return found

    def _estimator(self) -> Estimator | None:
        found: Estimator | None = self.found.build("estimator", make_estimator)
        return found

    def _device(self) -> torch.device | None:
        runtime = self.cfg.runtime
        name, found = runtime.device, torch.cuda.device_count()
        if name == "auto":
            name = "cuda" if found else "cpu"
        if runtime.devices > max(found, 1) and (runtime.device == "auto" or name == "cuda"):
            there = f"there are {found} GPUs here" if found else "there is no GPU here"
            self.found.add(
                "runtime.devices", f"{there}; processes on the CPU need runtime.device=cpu", str(max(found, 1))
            )
            return None
        try:
            device = torch.device(name)
            if device.type == "cuda" and device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            self.found.add("runtime.device", f"cannot be used ({str(error).splitlines()[0]})", "cpu")
            return None
        if runtime.execution == "graph" and (device.type != "cuda" or runtime.devices > 1):
            self.found.add("runtime.execution", "CUDA graphs need one GPU", "eager")
        if runtime.execution == "graph" and self.cfg.train.accumulate > 1:
            self.found.add("runtime.execution", "CUDA graphs do not accumulate gradients (train.accumulate)", "eager")
        return device

    def _steps_per_epoch(self, dataset: Dataset) -> int | None:
        train, shard = self.cfg.train, Shard(0, max(1, self.cfg.runtime.devices))
        try:
            batches = dataset.train_batches(train.batch_size, train.shuffle, train.seed, torch.device("cpu"), shard)
            return batches.steps_per_epoch
        except ValueError as error:
            self.found.add("train.batch_size", str(error).removeprefix("batch_size ").split(", got ")[0])
            return None

    def _model_builder(self, dataset: Dataset) -> Callable[[], nn.Module] | None:
        """The model's function with whatever it wants to know of the data set."""
        channels, _, width = dataset.image_shape
        facts = {"in_channels": channels, "image_size": width, "num_classes": dataset.num_classes}

        def made(node: DictConfig) -> Callable[[], nn.Module]:
            make = instantiate(node)
            if isinstance(make, nn.Module):
                raise TypeError("_partial_ must be true, for a function that makes a model")
            wanted = inspect.signature(make).parameters
            return partial(make, **{name: value for name, value in facts.items() if name in wanted})

        build: Callable[[], nn.Module] | None = self.found.build("model", made)
        if build is None:
            return None
        images = torch.zeros(2, *dataset.image_shape)

        def tried(node: DictConfig) -> None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                made(node)()(images)

        try:
            tried(self.cfg.model)
        except Exception as error:  # whatever a model says to images that do not fit
            size = "x".join(map(str, dataset.image_shape))
            self.found.refused("model", error, tried, f"cannot be built for images of {size}: ")
            return None
        return build

    def _checked_model(self, build_model: Callable[[], nn.Module], estimator: Estimator) -> nn.Module | None:
        """A model, quantized, on the CPU; None where none of its weights can be."""
        settings = self.cfg.quantizer
        with torch.random.fork_rng(devices=[]):
            model = build_model()
        try:
            quantize_weights(model, 1, Ste(), list(settings.include), list(settings.exclude), biases=settings.biases)
        except ValueError as error:
            argument, _, text = str(error).partition(": ")
            key, example = ("exclude", "[]") if argument == "exclude" else ("include", "[Conv2d]")
            self.found.add(f"quantizer.{key}", text or argument, example)
            return None
        self._check_room(model)
        self._quantizer(estimator)
        return model

    def _quantizer(self, estimator: Estimator) -> Quantizer | None:
        """One of range 1, if the estimator is made for it."""
        if any(str(getattr(problem, "key", "")).startswith("quantizer.") for problem in self.problems):
            return None
        settings = self.cfg.quantizer
        try:
            quantizer = make_quantizer(1.0, settings.saturation, bits=settings.bits, levels=levels_of(self.cfg))
        except ValueError as error:
            self.found.add("quantizer.levels", str(error).removeprefix("levels ").split(", got ")[0], "[-1,0,1]")
            return None
        try:
            estimator.check(quantizer)
        except ValueError as error:  # of ours, those for one bit
            key, example = ("bits", "1") if settings.levels is None else ("levels", "[-1,1]")
            self.found.add(f"quantizer.{key}", str(error), example)
        return quantizer

    def _check_optimizer(self, model: nn.Module, optimizer: MakeOptimizer) -> None:
        """Whether it takes the model's tensors, in two groups as in training, and steps on small ones of their kind."""
        tensors = list(model.parameters())

        def tried(make: MakeOptimizer, lr: float) -> None:
            made_optimizer(make, [{"params": tensors[:1], "lr": lr}, {"params": tensors[1:], "lr": lr}], lr)
            small = [torch.zeros([2] * ndim).requires_grad_() for ndim in {tensor.ndim for tensor in tensors}]
            for tensor in small:
                tensor.grad = torch.ones_like(tensor)
            make([{"params": small, "lr": lr}], lr=lr).step()

        try:
            tried(optimizer, self.cfg.optimizer.lr)
        except Exception as error:  # a foreign optimizer may raise anything

            def works(node: DictConfig) -> None:
                tried(make_optimizer(node), node.lr)

            self.found.refused("optimizer", error, works, "cannot train this network: ")

    def _check_room(self, model: nn.Module) -> None:
        """Whether one checkpoint fits on the disk; of an estimate, since optimizers differ in what they keep."""
        weights = sum(parameter.numel() for parameter in model.parameters())
        quantized = sum(latent.numel() for _, latent, _ in quantized_tensors(model))
        needed = (1 + len(self.cfg.counterparts)) * (8 * weights + 20 * quantized)
        output = Path(self.cfg.paths.output).absolute()
        free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free
        if needed > free:
            told = f"has {free / 1e9:.2g} GB free, and a checkpoint takes about {needed / 1e9:.2g} GB"
            self.found.add("paths.output", told, "FOLDER_WITH_MORE_ROOM")

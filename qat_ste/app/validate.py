"""Turns a configuration into the arguments of a comparison; reports every problem before training."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from qat_ste.app.components import ComponentBuilder, made_optimizer, make_estimator, make_logger, make_optimizer
from qat_ste.app.schema import MODEL_KEYS, ConfigError, parameters, problem_of
from qat_ste.base.errors import STEPS, ArgumentError
from qat_ste.base.sections import Execution, Metrics, Quantization, TrainConfig
from qat_ste.base.text import shown
from qat_ste.data.dataset import Dataset, Shard
from qat_ste.data.task import task_of
from qat_ste.estimators import Estimator
from qat_ste.experiment.counterparts import COUNTERPART_LIST, MemberSpec, adjust
from qat_ste.experiment.execution import check_execution, find_device
from qat_ste.experiment.member import Update
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors, quantizer_of
from qat_ste.models.checkpoint_file import CheckpointFile
from qat_ste.optimizers import Adjustment, MakeOptimizer, adjustment_of
from qat_ste.quantizers.quantizer import Quantizer


@dataclass(frozen=True)
class RunComponents:
    """The checked arguments of ``compare``; ``training`` has steps in place of epochs.

    Attributes:
        lr_factor: α; None where the estimator has none.
        files: SHA-256 of the file that the weights start from, by key; a part of the run's identity.
        members: networks, of which ``in_segments`` are trained in segments.
    """

    estimator: Estimator
    optimizer: MakeOptimizer
    dataset: Dataset
    build_model: Callable[[], nn.Module]
    quantization: Quantization
    training: TrainConfig
    metrics: Metrics
    execution: Execution
    device: torch.device
    adjustment: Adjustment
    lr_factor: float | None
    files: dict[str, str]
    members: int
    in_segments: int


class RunValidator:
    """Builds the components of a run and collects all problems with them.

    Args:
        default: returns the packaged value of a key ("estimator.k"), for examples in messages.
        problems: earlier problems, to report first.
    """

    def __init__(
        self, cfg: DictConfig, default: Callable[[str], Any] = lambda key: None, problems: Sequence[Any] = ()
    ) -> None:
        self.builder = ComponentBuilder(cfg, default, problems)
        self.cfg, self.problems = self.builder.cfg, self.builder.problems
        self._checkpoint: CheckpointFile | None = None

    def components(self) -> RunComponents:
        """Builds and checks all components.

        Raises:
            ConfigError: with all problems.
        """
        cfg = self.cfg
        if list(cfg.counterparts) not in COUNTERPART_LIST:
            self.builder.add("counterparts", f"must be {COUNTERPART_LIST}", "[ste,naive,jitter]")
        estimator = self.builder.build("estimator", make_estimator)
        optimizer = self.builder.build("optimizer", make_optimizer)
        device = self._device()
        dataset: Dataset | None = self.builder.build("dataset")
        build_model = model = training = None
        if dataset is not None:
            build_model = self._model_builder(dataset)
            training = self._training(dataset)
            if estimator is not None and build_model is not None:
                model = self._checked_model(build_model, estimator)
        self.builder.build("logger", make_logger)
        if optimizer is not None and model is not None and not self.problems:
            self._check_optimizer(model)
        if self.problems:
            raise ConfigError(self.problems)
        assert estimator is not None and optimizer is not None and device is not None
        assert dataset is not None and build_model is not None and model is not None and training is not None
        files = {} if self._checkpoint is None else {"model.checkpoint.sha256": self._checkpoint.sha256}
        files |= getattr(model, "weight_files", {})
        quantization = parameters(cfg, "quantizer")
        fake_quantizes = [fake_quantize for _, _, fake_quantize in quantized_tensors(model)]
        scales = [fake_quantize.scale for fake_quantize in fake_quantizes if fake_quantize.scale]
        adjustment, equivalent = adjust(
            adjustment_of(optimizer, cfg.optimizer.lr),
            estimator,
            quantizer_of(quantization, 1.0),
            scales_move=bool(scales),
            rotates=any(fake_quantize.rotation for fake_quantize in fake_quantizes),
        )
        mirrors = Update.of(training).mirrors(adjustment.equivalence, scales)
        specs = [
            MemberSpec.of(name, estimator, adjustment.equivalence, equivalent, mirrors) for name in cfg.counterparts
        ]
        # The reference and its counterparts; equal specifications are one run.
        counterparts = len([spec for number, spec in enumerate(specs) if spec not in specs[:number]])
        in_segments = counterparts * len(training.segments)
        metrics, execution = parameters(cfg, "metrics"), parameters(cfg, "runtime")
        return RunComponents(
            estimator, optimizer, dataset, build_model, quantization, training, metrics, execution, device, adjustment,
            equivalent.lr_factor if equivalent else None, files, 1 + counterparts + in_segments, in_segments,
        )  # fmt: skip

    def rule(self) -> tuple[Estimator, Quantizer, MakeOptimizer]:
        """Estimator, quantizer and optimizer, checked, without model and data set.

        Raises:
            ConfigError: with all problems.
        """
        estimator = self.builder.build("estimator", make_estimator)
        optimizer = self.builder.build("optimizer", make_optimizer)
        quantizer = None if estimator is None else self._quantizer(estimator)
        if not self.problems:
            groups = [{"params": [torch.zeros(2, 2, requires_grad=True)]}]
            self.builder.build("optimizer", lambda node: made_optimizer(make_optimizer(node), groups, node.lr))
        if self.problems or estimator is None or quantizer is None or optimizer is None:
            raise ConfigError(self.problems)
        return estimator, quantizer, optimizer

    def _device(self) -> torch.device | None:
        runtime, gpus = self.cfg.runtime, torch.cuda.device_count()
        if runtime.devices > max(gpus, 1) and runtime.device in ("auto", "cuda"):
            gpus_here = f"there are {gpus} GPUs here" if gpus else "there is no GPU here"
            allowed = f"{gpus_here}; processes on the CPU need runtime.device=cpu"
            self.builder.add("runtime.devices", allowed, str(max(gpus, 1)))
            return None
        try:
            launching = runtime.devices > 1 and "LOCAL_RANK" not in os.environ
            device = find_device(runtime.device, launching)
            check_execution(runtime.execution, device, runtime.devices, self.cfg.train.accumulate)
        except ArgumentError as error:
            example = "cpu" if error.name == "device" else "eager"
            self.problems.append(problem_of(f"runtime.{error.name}", error, example))
            return None
        return device

    def _training(self, dataset: Dataset) -> TrainConfig | None:
        """The training parameters with the length in steps."""
        train, shard = parameters(self.cfg, "train"), Shard(0, max(1, self.cfg.runtime.devices))
        try:
            batches = dataset.train_batches(train.batch_size, train.shuffle, train.seed, torch.device("cpu"), shard)
        except ArgumentError as error:
            self.builder.add("train.batch_size", f"must be {error.allowed}")
            return None
        per_epoch = train.steps_per_epoch or batches.steps_per_epoch
        steps = train.total_steps(per_epoch)
        if steps not in STEPS:
            key = "train.steps" if train.epochs is None else "train.epochs"
            self.builder.add(key, f"comes to {steps} steps; the number of steps must be {STEPS}", "10")
            return None
        if train.segments and train.segments[-1] >= steps:
            self.builder.add(
                "train.segment", f"must be shorter than the run of {steps} steps", str(max(1, steps // 10))
            )
            return None
        return replace(train, steps=steps, epochs=None, steps_per_epoch=per_epoch, length_scale=1.0, share=1.0)

    def _model_builder(self, dataset: Dataset) -> Callable[[], nn.Module] | None:
        """The function that builds the model, with its arguments that depend on the data set."""
        task = task_of(dataset)
        given = (self.cfg.model.pop(key.partition(".")[2], None) for key in MODEL_KEYS)
        path, rename = (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for value in given)

        def make_builder(node: DictConfig) -> Callable[[], nn.Module]:
            make = instantiate(node)
            if isinstance(make, nn.Module):
                raise TypeError("_partial_ must be true, for a function that makes a model")
            wanted = inspect.signature(make).parameters
            return partial(make, **{name: value for name, value in task.model_arguments.items() if name in wanted})

        def make_tested_builder(node: DictConfig) -> Callable[[], nn.Module]:
            build = make_builder(node)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                outputs = build()(task.inputs)
            if not task.accepts(outputs):
                shape = f" of shape {'x'.join(map(str, outputs.shape))}" if isinstance(outputs, Tensor) else ""
                dimensions = "images" if task.targets.ndim == 1 else "windows x tokens"
                allowed = f"a tensor of {dimensions} x {task.num_classes} classes"
                raise TypeError(f"in training it must return {allowed}, not {type(outputs).__name__}{shape}")
            return build

        if self.builder.build("model", make_builder) is None:
            return None
        build = self.builder.build("model", make_tested_builder, f"cannot be built for {task.described}: ")
        return build if build is None or path is rename is None else self._loading_builder(build, path, rename)

    def _loading_builder(
        self, build: Callable[[], nn.Module], path: Any, rename: Any
    ) -> Callable[[], nn.Module] | None:
        """The function that builds the model and loads the checkpoint, which is read once."""
        try:
            if path is None:
                raise ArgumentError("rename", rename, "null without model.checkpoint=FILE")
            self._checkpoint = CheckpointFile(path, rename)
            load = partial(_loaded, build, self._checkpoint)
            with torch.random.fork_rng(devices=[]):
                load()
        except ArgumentError as error:
            value = shown(rename if error.name == "rename" else path)
            self.problems.append(f"model.{error.name}={value}: must be {error.allowed}")
            return None
        return load

    def _checked_model(self, build_model: Callable[[], nn.Module], estimator: Estimator) -> nn.Module | None:
        """A quantized model on the CPU; None where none of its weights can be quantized."""
        if self._quantizer(estimator) is None:
            return None
        with torch.random.fork_rng(devices=[]):
            model = build_model()
        try:
            quantize_weights(model, parameters(self.cfg, "quantizer"), estimator)
        except ArgumentError as error:
            examples = {"exclude": "[]", "scale": "initial_absmax", "granularity": "channel", "rotation": "16"}
            example = examples.get(error.name, "[Conv2d]")
            self.builder.add(f"quantizer.{error.name}", f"must be {error.allowed}", example)
            return None
        self._check_room(model)
        return model

    def _quantizer(self, estimator: Estimator) -> Quantizer | None:
        """The quantizer of range 1, if the estimator accepts it."""
        if any(str(getattr(problem, "key", "")).startswith("quantizer.") for problem in self.problems):
            return None
        quantization = parameters(self.cfg, "quantizer")
        try:
            quantizer = quantizer_of(quantization, 1.0)
            estimator.check(quantizer)
        except ArgumentError as error:
            key, example = ("ties", "up") if error.name == "ties" else ("levels", "[-1,0,1]")
            self.builder.add(f"quantizer.{key}", f"must be {error.allowed}", example)
            return None
        except ValueError as error:  # of built-in estimators, those for one bit
            key, example = ("bits", "1") if quantization.levels is None else ("levels", "[-1,1]")
            self.builder.add(f"quantizer.{key}", str(error), example)
            return None
        return quantizer

    def _check_optimizer(self, model: nn.Module) -> None:
        """Makes the optimizer for the model's tensors, in two groups as in training, and steps on small tensors."""
        tensors = list(model.parameters())

        def step_once(node: DictConfig) -> None:
            make, lr = make_optimizer(node), node.lr
            made_optimizer(make, [{"params": tensors[:1], "lr": lr}, {"params": tensors[1:], "lr": lr}], lr)
            small = [torch.zeros([2] * ndim).requires_grad_() for ndim in {tensor.ndim for tensor in tensors}]
            for tensor in small:
                tensor.grad = torch.ones_like(tensor)
            make([{"params": small, "lr": lr}], lr=lr).step()

        self.builder.build("optimizer", step_once, "cannot train this network: ")

    def _check_room(self, model: nn.Module) -> None:
        """Adds a problem if a checkpoint, by a rough estimate, does not fit on the disk."""
        weights = sum(parameter.numel() for parameter in model.parameters())
        quantized = sum(latent.numel() for _, latent, _ in quantized_tensors(model))
        trained = 1 + len(self.cfg.counterparts) * (1 + len(parameters(self.cfg, "train").segments))
        needed = trained * (8 * weights + 20 * quantized)
        output = Path(self.cfg.paths.output).absolute()
        free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free
        if needed > free:
            allowed = f"has {free / 1e9:.2g} GB free, and a checkpoint takes about {needed / 1e9:.2g} GB"
            self.builder.add("paths.output", allowed, "FOLDER_WITH_MORE_ROOM")


def _loaded(build: Callable[[], nn.Module], checkpoint: CheckpointFile) -> nn.Module:
    return checkpoint.load_into(build())

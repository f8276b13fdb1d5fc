"""Networks, batches and training steps to measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat_ste import models
from qat_ste.base.sections import Execution, Quantization
from qat_ste.data.task import bits_per_token
from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Lockstep
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.experiment.passes import Loss
from qat_ste.experiment.schedules import constant
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.optimizers import KerasSGD, MakeOptimizer

from .timing import Stopwatch

LR = 1e-3
OPTIMIZER = partial(KerasSGD, momentum=0.9)
COUNTERPARTS = ("ste", "naive", "jitter", *(f"jitter_{percent}" for percent in (2, 3, 4, 5)))
GREY = ("small_cnn", "keras_cnn", "flax_cnn")  # networks for grey images
GPT = "gpt_"  # start of the name of a language model; its size follows
ADAMW = partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0)
OF_GPT = Quantization(include=["Linear"], exclude=["head"], scale="absmax", granularity="channel")


@dataclass(frozen=True)
class Setting:
    """A network, its batches, and the ``rounds`` of ``steps`` to measure.

    Attributes:
        image_size: of a language model, the tokens of a window.
    """

    network: str
    image_size: int
    batch_size: int
    steps: int
    rounds: int

    def __str__(self) -> str:
        unit = "tokens" if self.of_text else "px"
        return f"{self.network}, {self.image_size} {unit}, batch {self.batch_size}"

    @property
    def of_text(self) -> bool:
        """Whether the network is a language model."""
        return self.network.startswith(GPT)

    @property
    def training(self) -> dict[str, Any]:
        """What ``Plain`` and ``Members`` train with."""
        return {"loss": bits_per_token, "optimizer": ADAMW} if self.of_text else {}

    def build(self) -> nn.Module:
        if self.of_text:
            return models.gpt(self.network.removeprefix(GPT), context=self.image_size)
        if self.network in GREY:
            return getattr(models, self.network)()
        return models.torchvision_model(self.network, num_classes=10)

    def images(self, count: int) -> Tensor:
        channels = 1 if self.network in GREY else 3
        return torch.rand(count, channels, self.image_size, self.image_size)

    def batch(self) -> tuple[Tensor, Tensor]:
        if self.of_text:
            tokens = torch.randint(0, 256, (self.batch_size, self.image_size + 1))
            return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        images = self.images(self.batch_size)
        if self.network not in GREY:  # those change the layout of their images themselves
            images = images.to(memory_format=torch.channels_last)
        return images, torch.randint(0, 10, (self.batch_size,))


def textbook(model: nn.Sequential) -> nn.Sequential:
    """Returns the layers of ``keras_cnn`` in their usual layout: channels outermost, ReLU before the pooling."""
    layers: list[nn.Module] = []
    for layer in list(model)[1:]:  # the first one sets the memory format
        layers.insert(len(layers) - isinstance(layer, nn.ReLU), layer)
    return nn.Sequential(*layers)


class Plain:
    """fp32 steps of several networks without quantizers, one after another."""

    def __init__(
        self, networks: Sequence[nn.Module], batch: tuple[Tensor, Tensor], watch: Stopwatch, precision: str = "fp32",
        loss: Loss = F.cross_entropy, optimizer: MakeOptimizer = OPTIMIZER,
    ) -> None:  # fmt: skip
        self.batch, self.watch, self.loss = batch, watch, loss
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        if precision == "bf16":
            self.autocast = partial(torch.autocast, batch[0].device.type, torch.bfloat16)
        self.trained = [(network, optimizer(network.parameters(), lr=LR)) for network in networks]

    def step(self) -> None:
        inputs, targets = self.batch
        for network, optimizer in self.trained:
            with self.watch("forward"), self.autocast():
                loss = self.loss(network(inputs), targets)
            optimizer.zero_grad()
            with self.watch("backward"):
                loss.backward()
            with self.watch("optimizer"):
                optimizer.step()


class Members:
    """Steps of a cohort: a reference with a tanh estimator and its counterparts, with or without metrics."""

    def __init__(
        self, model: nn.Module, members: int, batch: tuple[Tensor, Tensor], watch: Stopwatch, metrics: bool,
        include: Sequence[str] = ("Conv2d",), execution: Execution = Execution(),
        quantization: Quantization | None = None,
        loss: Loss = F.cross_entropy, optimizer: MakeOptimizer = OPTIMIZER,
    ) -> None:  # fmt: skip
        self.batch, self.watch = batch, watch
        estimator = Tanh(5.5)
        quantization = quantization or Quantization(include=list(include), biases=True)
        quantized = quantize_weights(model, quantization, estimator)
        # Under Adam the first two are one run.
        counterparts = (COUNTERPARTS if optimizer is OPTIMIZER else COUNTERPARTS[1:])[: members - 1]
        cohort = Cohort(quantized, estimator, optimizer, LR, counterparts, execution=execution)
        self.cohort = cohort.make_members()
        self.lockstep = Lockstep(self.cohort, loss, constant(), seed=0)
        self.monitor = DivergenceMonitor(self.cohort, sequence_weights=1_000_000, seed=0) if metrics else None
        self._steps = 0

    def step(self) -> None:
        self.lockstep.step(self._steps, *self.batch)
        self.observe()

    def observe(self) -> None:
        """Measures the members after a step."""
        self._steps += 1
        if self.monitor is not None:
            with self.watch("observe"):
                self.monitor.observe(self._steps, self.cohort.levels())

    def row(self) -> dict[str, float | None]:
        """Returns the logged metrics by counterpart and name."""
        assert self.monitor is not None
        names = self.cohort.counterparts.items()
        return {f"{name}/{key}": value for name, number in names for key, value in self.monitor.now(number).items()}

"""Trains estimators at several learning rates on the same batches, and evaluates each on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import Execution, Quantization, Training
from qat_ste.base.text import of_error
from qat_ste.data.dataset import Batch
from qat_ste.estimators import Estimator
from qat_ste.experiment.batch_source import Batches, BatchSource, on_device, seeded, steps_of
from qat_ste.experiment.checks import check_model
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.evaluation import evaluate_networks
from qat_ste.experiment.execution import find_device
from qat_ste.experiment.passes import Loss, Outputs
from qat_ste.experiment.preflight import Preflight
from qat_ste.experiment.randomness import kept_generators, seed_everything, seed_noise
from qat_ste.experiment.ranks import Ranks
from qat_ste.experiment.schedules import schedule_of
from qat_ste.fake_quant.fake_quantize import quantize_weights
from qat_ste.optimizers import MakeOptimizer

CHECK_EVERY = 50  # steps between looks at the losses
LAST = 0.1  # share of the steps whose mean is the training loss
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Trial:
    """A training with ``estimator`` at learning rate ``lr``; ``adjusted``: with its counterpart ``ste`` instead."""

    estimator: Estimator
    lr: float
    adjusted: bool = False


@dataclass(frozen=True)
class TrialResult:
    """The numbers of a trained network; None where there are none.

    Attributes:
        train_loss: mean over the last tenth of the steps.
        fault: why the training did not finish.
        diverged: whether the fault is a number that is not finite.
    """

    train_loss: float | None = None
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    fault: str | None = None
    diverged: bool = False


def train_trials(
    build_model: Callable[[], nn.Module],
    batches: Batches,
    trials: Mapping[Name, Trial],
    *,
    loss: Loss,
    optimizer: MakeOptimizer,
    validation: Iterable[Batch],
    test: Iterable[Batch],
    quantization: Quantization = Quantization(),
    training: Training = Training(),
    execution: Execution = Execution(),
) -> dict[Name, TrialResult]:
    """Trains one network a trial, in lockstep on the same batches, and evaluates all of them at the end.

    The numbers of a trial do not depend on the trials beside it. A trial that diverges or raises has a ``fault``, and
    the others go on. The other arguments are those of ``compare``.

    Raises:
        ArgumentError: model, batches, loss or optimizer cannot be used; found before training.
    """
    if Ranks().size > 1:
        raise ArgumentError("devices", Ranks().size, "1: trials are trained by one process each")
    device, seed = find_device(execution.device), training.seed
    steps, _ = steps_of(training, batches)
    with ExitStack() as stack:
        stack.enter_context(kept_generators(device))
        models: dict[Estimator, nn.Module] = {}
        for trial in trials.values():
            if trial.estimator not in models:
                seed_everything(seed)
                model = check_model(build_model()).to(device)
                models[trial.estimator] = quantize_weights(model, quantization, trial.estimator)
        source = BatchSource(batches, 0, seed)
        first, schedule = source.first(), schedule_of(training, steps)
        networks: dict[Name, _Network] = {}
        for name, trial in trials.items():
            cohort = Cohort(
                models[trial.estimator], trial.estimator, optimizer, trial.lr, ["ste"] if trial.adjusted else [],
                training, execution, Ranks(),
            )  # fmt: skip
            if networks:
                cohort.needs = next(iter(networks.values())).cohort.needs
            else:
                Preflight(cohort, loss, first, seed).run(validation, resumable=False)
            networks[name] = _Network(cohort, trial, steps)
        for step, batch in zip(range(steps), on_device(source, device, "batches"), strict=False):
            if step == 0:
                _choose_mode([network.cohort for network in networks.values()], loss, batch, steps)
            for network in networks.values():
                seed_noise(seed, step, device)
                network.step(step, *batch, loss, schedule(step))
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                for network in networks.values():
                    network.check(step + 1)
        trained = [network for network in networks.values() if not network.fault]
        for split, held_out in (("validation", validation), ("test", test)):
            _evaluate(trained, split, on_device(seeded(held_out, seed), device, "validation"), loss, seed)
    return {name: network.result() for name, network in networks.items()}


class _Network:
    """The network of a trial; ``fault`` says why its training stopped."""

    def __init__(self, cohort: Cohort, trial: Trial, steps: int) -> None:
        self.cohort, self.steps, self.fault, self.diverged = cohort, steps, "", False
        self.losses = torch.full((steps,), math.nan, device=cohort.device)
        self.numbers: dict[str, Any] = {}
        number = cohort.names["ste"] if trial.adjusted else 0
        self.member = cohort.member(cohort.specs[number])
        cohort.local = {number: self.member}

    def step(self, step: int, inputs: Tensor, targets: Tensor, loss: Loss, factor: float) -> None:
        if self.fault:
            return
        try:
            self.cohort.enter(step, self.steps)
            self.losses[step] = self.member.step(inputs, targets, loss, factor)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a foreign estimator may raise anything
            self.fault = f"{of_error(error)}, at step {step + 1}"

    def check(self, done: int) -> None:
        """Stops the training if one of the first ``done`` losses is not finite."""
        if not self.fault and not bool(self.losses[:done].isfinite().all()):
            step = int((~self.losses[:done].isfinite()).nonzero()[0])
            self.fault, self.diverged = f"the loss is {self.losses[step].item()} at step {step + 1}", True

    def result(self) -> TrialResult:
        last = self.losses[-max(1, round(LAST * self.steps)) :]
        wrong = [key for key, value in self.numbers.items() if value is not None and not math.isfinite(value)]
        if not self.fault and wrong:
            self.fault, self.diverged = f"the {wrong[0].replace('_', ' ')} is {self.numbers[wrong[0]]}", True
        if self.fault:
            return TrialResult(fault=self.fault, diverged=self.diverged)
        return TrialResult(last.mean().item(), **self.numbers)


def _choose_mode(cohorts: list[Cohort], loss: Loss, batch: Batch, steps: int) -> None:
    """Executes all networks in the mode that is the fastest for the first."""
    for number, cohort in enumerate(cohorts):
        if number:
            cohort.mode = cohorts[0].mode
        cohort.choose_mode(loss, *batch, steps)


def _evaluate(networks: list[_Network], split: str, batches: Iterable[Batch], loss: Loss, seed: int) -> None:
    if not networks:
        return

    def outputs_of(inputs: Tensor, draw_again: Callable[[], None]) -> list[Outputs]:
        outputs = []
        for network in networks:
            draw_again()
            outputs.append(network.member.predict(inputs))
        return outputs

    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network.member.evaluating())
        cohort, model = networks[0].cohort, networks[0].member.model
        evaluations = evaluate_networks(cohort, outputs_of, len(networks), model, batches, loss, seed)
    for network, evaluation in zip(networks, evaluations, strict=True):
        network.numbers |= {f"{split}_accuracy": evaluation.accuracy, f"{split}_loss": evaluation.loss}

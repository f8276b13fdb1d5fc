"""Trains the float network that a comparison starts from, once for all runs that start from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat_ste.base.errors import FUNCTION, POSITIVE, STEPS, ArgumentError, Instance, require
from qat_ste.base.files import home_path, waiting_lock
from qat_ste.base.sections import CheckpointSchedule, Execution, Training
from qat_ste.data.dataset import Shard
from qat_ste.experiment.batch_source import Batches, BatchSource, on_device
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.checks import BATCHES, check_model, check_optimizer, explained, of_shard
from qat_ste.experiment.execution import find_device
from qat_ste.experiment.lockstep import Stopped
from qat_ste.experiment.member import Update, set_mode
from qat_ste.experiment.passes import Autocast, Loss, autocast_for, backward
from qat_ste.experiment.randomness import kept_generators, seed_everything, seed_noise
from qat_ste.experiment.ranks import Ranks
from qat_ste.experiment.schedules import schedule_of
from qat_ste.optimizers import MakeOptimizer

log = logging.getLogger(__name__)
NO_ROWS = '{"rows": []}'  # a checkpoint has a record


def pretrain(
    build_model: Callable[[], nn.Module],
    batches: Batches | Callable[[Shard], Batches],
    steps: int,
    *,
    loss: Loss,
    optimizer: MakeOptimizer,
    lr: float,
    training: Training = Training(),
    execution: Execution = Execution(),
    folder: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    schedule: CheckpointSchedule = CheckpointSchedule(),
    stop: Callable[[], bool] = lambda: False,
) -> Callable[[], nn.Module]:
    """Trains the plain network; returns a function that builds it with the trained weights, for ``compare``.

    Args:
        build_model, batches, loss, optimizer, lr: see ``compare``.
        steps: of the optimizer, over which the schedule of ``training`` runs.
        training: schedule, decay, clipping, accumulation and seed; its length is not used.
        folder: keeps the weights, and the state every so many steps (``schedule``). A folder that holds them is read
            instead of training, an interrupted training goes on; another process that trains there is waited for.
        config: nested plain values that the weights in ``folder`` must have been trained with.
        stop: called after each step; true ends the training.

    Raises:
        ArgumentError: an argument is not allowed; the message starts with its name.
        FloatingPointError: a loss is not finite.
        Stopped: ``stop`` returned true.
    """
    require(FUNCTION, build_model=build_model, loss=loss, optimizer=optimizer, stop=stop)
    require(BATCHES, batches=batches)
    require(POSITIVE, lr=lr)
    require(STEPS, steps=steps)
    check_optimizer(optimizer, lr)
    require(Instance(Training), training=training)
    require(Instance(Execution), execution=execution)
    device, seed = find_device(execution.device), training.seed
    with ExitStack() as stack:
        stack.enter_context(kept_generators(device))
        checkpoints = None
        if folder is not None:
            folder = home_path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(waiting_lock(folder, partial(log.info, "waits for the start that %s trains")))
            checkpoints = Checkpoints(folder, config, schedule)
        if Ranks().size > 1 and (checkpoints is None or checkpoints.step < steps):
            allowed = "0 where several processes train, unless one process has trained this start before"
            raise ArgumentError("pretrain_steps", steps, allowed)
        state = checkpoints.take() if checkpoints is not None else None
        if state is None or state["step"] < steps:
            seed_everything(seed)
            model = check_model(build_model()).to(device)
            state = _train(
                model,
                of_shard("batches", batches, Shard(), BATCHES),
                steps,
                loss=loss,
                optimizer=optimizer([{"params": [*model.parameters()], "lr": lr}], lr=lr),
                training=training,
                autocast=autocast_for(execution.precision, device),
                checkpoints=checkpoints,
                state=state,
                stop=stop,
            )
    return partial(_with_weights, build_model, state["model"])


def _train(
    model: nn.Module,
    batches: Batches,
    steps: int,
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    training: Training,
    autocast: Autocast,
    checkpoints: Checkpoints | None,
    state: dict[str, Any] | None,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    device, seed, start = next(model.parameters()).device, training.seed, 0
    update = Update.of(replace(training, clip_at="latent"))  # no estimator stands between
    factor, lrs = schedule_of(training, steps), [group["lr"] for group in optimizer.param_groups]
    if state is not None:  # its groups hold the learning rate of the last step
        start = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    losses = torch.zeros(steps, device=device)

    def save(step: int) -> dict[str, Any]:
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0]) + 1
            raise FloatingPointError(f"the loss of the float network is not finite at step {first}: try a smaller lr")
        saved = {"step": step, "record": NO_ROWS, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if checkpoints is not None:
            checkpoints.save(saved)
        return saved

    set_mode(optimizer, "train")
    source = BatchSource(batches, start, seed)
    for step, batch in zip(range(start, steps), on_device(source, device, "batches"), strict=False):
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * factor(step)
        seed_noise(seed, step, device)
        optimizer.zero_grad()
        inputs, targets = (values.clone() for values in batch)  # the model or the loss may work in place
        with explained("batches", batch, model, loss):
            losses[step], _ = backward(model, loss, inputs, targets, training.accumulate, autocast)
        update.apply(model, optimizer)
        optimizer.step()
        if step + 1 < steps and stop():
            save(step + 1)
            raise Stopped(0)
        if step + 1 < steps and checkpoints is not None and checkpoints.due(step + 1):
            save(step + 1)
    set_mode(optimizer, "eval")
    return save(steps)


def _with_weights(build_model: Callable[[], nn.Module], state: Mapping[str, Any]) -> nn.Module:
    model = build_model()
    model.load_state_dict(state)
    return model

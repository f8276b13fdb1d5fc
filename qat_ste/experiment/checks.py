"""Checks what the user's functions return: models, optimizers, batches, losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qat_ste.base.errors import ArgumentError
from qat_ste.base.text import of_error, of_value
from qat_ste.data.dataset import Shard
from qat_ste.experiment.model_copy import copy_model
from qat_ste.experiment.passes import Loss, checked_loss
from qat_ste.optimizers import MakeOptimizer


class _BatchesRule:
    """Batches, or a function that makes them; ``training`` allows ``TrainingBatches`` as well."""

    def __init__(self, training: bool) -> None:
        self.training = training

    def __contains__(self, value: Any) -> bool:
        return callable(value) or self.holds(value)

    def holds(self, value: Any) -> bool:
        """Whether these are batches."""
        return isinstance(value, Iterable) or (self.training and hasattr(value, "starting_at"))

    def __str__(self) -> str:
        return f"{self.batches}, or a function of a Shard that returns one"

    @property
    def batches(self) -> str:
        return f"an iterable of batches{' or TrainingBatches' if self.training else ''}"


BATCHES, VALIDATION = _BatchesRule(training=True), _BatchesRule(training=False)


def check_model(model: object) -> nn.Module:
    """The model that ``build_model`` returned."""
    if not isinstance(model, nn.Module):
        raise ArgumentError("build_model", model, "a function that returns a torch.nn.Module")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            allowed = f"a function that calls the model on a batch once ({name} has no shape before the first call)"
            raise ArgumentError("build_model", type(model).__name__, allowed)
    return model


def check_optimizer(make: MakeOptimizer, lr: float) -> None:
    """Whether ``make`` returns an optimizer for parameter groups and ``lr``."""
    try:
        made = make([{"params": [torch.zeros(2, 2, requires_grad=True)]} for _ in range(2)], lr=lr)
    except Exception as error:  # a foreign optimizer may raise anything
        allowed = f"a function that takes parameter groups and lr= ({of_error(error)})"
        raise ArgumentError("optimizer", make, allowed) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ArgumentError("optimizer", made, "a function that returns a torch.optim.Optimizer")


def called(argument: str, function: Callable[..., Any], *values: object) -> Any:
    """Calls the function that was given as this argument.

    Raises:
        ArgumentError: it does not accept ``values``. Its own errors pass through.
    """
    try:
        return function(*values)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:  # raised inside the function
            raise
        allowed = f"a function that can be called with {of_value(values)} ({of_error(error)})"
        raise ArgumentError(argument, function, allowed) from error


def of_shard(argument: str, batches: Any, shard: Shard, rule: _BatchesRule) -> Any:
    """The batches given as this argument, or those that the function given there returns for ``shard``.

    Raises:
        ArgumentError: the function does not accept a shard, or does not return batches.
    """
    if not callable(batches):
        return batches
    made = called(argument, batches, shard)
    if not rule.holds(made):
        raise ArgumentError(argument, made, f"a function that returns {rule.batches}")
    return made


def inputs_and_targets(argument: str, batch: object) -> tuple[Tensor, Tensor]:
    """The two tensors of a batch of this argument."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(values, Tensor) for values in batch):
        return batch[0], batch[1]
    raise ArgumentError(argument, batch, "batches that are pairs of tensors (inputs, targets)")


@contextmanager
def explained(argument: str, batch: object, model: nn.Module, loss: Loss, accumulate: int = 1) -> Iterator[None]:
    """Replaces an error of the code inside by that of ``check_batch``, if the batch fits neither model nor loss."""
    try:
        yield
    except (ArithmeticError, torch.OutOfMemoryError):
        raise
    except Exception:
        check_batch(argument, batch, model, loss, accumulate)
        raise


def check_batch(argument: str, batch: object, model: nn.Module, loss: Loss, accumulate: int = 1) -> None:
    """Whether model and loss accept the first of ``accumulate`` parts of a batch; tried on a copy of the model.

    Raises:
        ArgumentError: the batch is no pair of tensors, or does not fit the model or the loss.
    """
    device = next(model.parameters()).device
    inputs, targets = (values.chunk(accumulate)[0].to(device) for values in inputs_and_targets(argument, batch))
    model = copy_model(model)
    shape = f"{tuple(inputs.shape)} {inputs.dtype}"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            outputs = model(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a foreign model may raise anything
            allowed = f"batches that fit the model, which does not accept inputs {shape} ({of_error(error)})"
            raise ArgumentError(argument, shape, allowed) from error
        try:
            checked_loss(loss, outputs, targets)
        except ArgumentError as error:
            raise ArgumentError("loss", error.value, f"one that fits {argument}: {error.allowed}") from error

"""What ``compare`` asks of its arguments; each message starts with the argument's name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat_ste.base.errors import BITS, COUNT, POSITIVE, SEED, STEPS, Bounds
from qat_ste.base.text import of_error, of_value
from qat_ste.data.dataset import Shard
from qat_ste.estimators import Estimator
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.counterparts import COUNTERPARTS, unknown_counterparts
from qat_ste.experiment.execution import Execution
from qat_ste.experiment.gradient_update import Clipping, L2Penalty, WeightDecay
from qat_ste.experiment.member import Loss, checked_loss
from qat_ste.experiment.ranks import PLACEMENTS
from qat_ste.optimizers import MakeOptimizer
from qat_ste.quantizers.quantizer import SATURATIONS


@dataclass(frozen=True)
class _Asked:
    allowed: str
    test: Callable[[Any], bool]
    error: type[Exception] = ValueError

    def or_none(self) -> _Asked:
        return _Asked(f"None or {self.allowed}", lambda value: value is None or self.test(value), self.error)

    def or_made(self) -> _Asked:
        allowed = f"{self.allowed}, or a function of a Shard that makes one"
        return _Asked(allowed, lambda value: callable(value) or self.test(value), self.error)


def _within(bounds: Bounds) -> _Asked:
    return _Asked(str(bounds), lambda value: value in bounds)


def _one_of(names: Iterable[str]) -> _Asked:
    names = tuple(names)
    return _Asked(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _a(kind: type) -> _Asked:
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return _Asked(f"{article} {kind.__name__}", lambda value: isinstance(value, kind), TypeError)


def _usable(device: Any) -> bool:
    try:
        torch.zeros(1, device=torch.device(device)).item()
    except (RuntimeError, TypeError, AssertionError):
        return False
    return True


_FUNCTION = _Asked("a function", callable, TypeError)
_ITERABLE = _Asked("an iterable of batches", lambda value: isinstance(value, Iterable), TypeError)
_TRAINING = _Asked(
    "an iterable of batches or TrainingBatches",
    lambda value: isinstance(value, Iterable) or hasattr(value, "starting_at"),
    TypeError,
)
_NAMES = _Asked(
    f"a list of at least one of {', '.join(COUNTERPARTS)} and jitter_<percent>",
    lambda value: isinstance(value, list | tuple) and bool(value) and not unknown_counterparts(value),
)
_PATTERNS = _Asked(
    "a list of types, type names or patterns over names",
    lambda value: isinstance(value, list | tuple) and all(isinstance(pattern, str | type) for pattern in value),
    TypeError,
)
ASKED: Mapping[str, _Asked] = {
    "build_model": _FUNCTION,
    "batches": _TRAINING.or_made(),
    "loss": _FUNCTION,
    "bits": _within(BITS),
    "estimator": _a(Estimator),
    "optimizer": _FUNCTION,
    "lr": _within(POSITIVE),
    "steps": _within(STEPS),
    "validation": _ITERABLE.or_made().or_none(),
    "steps_per_epoch": _within(COUNT).or_none(),
    "schedule": _FUNCTION.or_none(),
    "counterparts": _NAMES,
    "include": _PATTERNS,
    "exclude": _PATTERNS,
    "biases": _a(bool),
    "saturation": _one_of(SATURATIONS),
    "clipping": _a(Clipping).or_none(),
    "l2": _a(L2Penalty).or_none(),
    "weight_decay": _a(WeightDecay).or_none(),
    "sequence_weights": _within(COUNT),
    "log_every": _within(COUNT).or_none(),
    "seed": _within(SEED),
    "device": _Asked("a device that is there", _usable),
    "on_row": _FUNCTION,
    "stop": _FUNCTION,
    "execution": _a(Execution),
    "placement": _one_of(PLACEMENTS),
    "checkpoints": _a(Checkpoints).or_none(),
}  # but for the levels, of which the quantizer knows


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError for the first of ``compare``'s arguments that is not what is asked for."""
    for name, asked in ASKED.items():
        if not asked.test(arguments[name]):
            raise asked.error(f"{name} must be {asked.allowed}, got {of_value(arguments[name])}")


def check_model(model: object) -> nn.Module:
    """What ``build_model`` returned."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"build_model must return a torch.nn.Module, got {of_value(model)}")
    return model


def check_optimizer(make: MakeOptimizer, lr: float) -> None:
    """Whether it makes one of parameter groups and ``lr``."""
    try:
        made = make([{"params": [torch.zeros(2, 2, requires_grad=True)]}], lr=lr)
    except Exception as error:  # a foreign optimizer may raise anything
        raise TypeError(f"optimizer must take parameter groups and lr=: {of_error(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, got {of_value(made)}")


def called(argument: str, function: Callable[..., Any], *values: object) -> Any:
    """What the function given as this argument makes of ``values``.

    Raises:
        TypeError: it does not take them. What it raises itself stays as it is.
    """
    try:
        return function(*values)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:  # raised inside the function
            raise
        raise TypeError(f"{argument} cannot be called with {of_value(values)}: {of_error(error)}") from error


def of_shard(argument: str, batches: Any, shard: Shard) -> Any:
    """The batches given as this argument, or what the function given there makes of ``shard``.

    Raises:
        TypeError: the function takes no shard, or makes no batches of it.
    """
    if not callable(batches):
        return batches
    made, asked = called(argument, batches, shard), _TRAINING if argument == "batches" else _ITERABLE
    if not asked.test(made):
        raise asked.error(f"{argument} must return {asked.allowed}, got {of_value(made)}")
    return made


def pair(argument: str, batch: object) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch of this argument."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(values, Tensor) for values in batch):
        return batch[0], batch[1]
    raise TypeError(f"{argument} must give pairs of tensors (inputs, targets), got {of_value(batch)}")


@contextmanager
def explained(argument: str, batch: object, model: nn.Module, loss: Loss, parts: int = 1) -> Iterator[None]:
    """Where the code inside fails because the batch fits neither model nor loss, raises what ``check_batch`` says."""
    try:
        yield
    except (ArithmeticError, torch.OutOfMemoryError):
        raise
    except Exception:
        check_batch(argument, batch, model, loss, parts)
        raise


@torch.no_grad()
def check_batch(argument: str, batch: object, model: nn.Module, loss: Loss, parts: int = 1) -> None:
    """Whether the model takes the first of as many parts of an argument's batch, and the loss its outputs; on a copy.

    Raises:
        TypeError: the batch is no pair of tensors, or the loss is no number.
        ValueError: it does not fit the model, or the loss.
    """
    device = next(model.parameters()).device
    inputs, targets = (values.chunk(parts)[0].to(device) for values in pair(argument, batch))
    model = copy.deepcopy(model)
    shape = f"{tuple(inputs.shape)} {inputs.dtype}"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            outputs = model(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model says to what does not fit
            told = f"{argument} must fit the model, which does not take inputs {shape}: {of_error(error)}"
            raise ValueError(told) from error
        try:
            checked_loss(loss, outputs, targets)
        except ValueError as error:
            raise ValueError(f"loss does not fit {argument}: {error}") from error

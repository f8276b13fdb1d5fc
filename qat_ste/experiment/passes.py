"""Forward and backward passes of a step, and the loss that they need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from qat_ste.base.errors import ArgumentError

Outputs = Any  # a tensor, or tensors in tuples, lists, dictionaries or objects
Loss = Callable[[Outputs, Tensor], Tensor]
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast_for(precision: str, device: torch.device) -> Autocast:
    """The context of the passes in one of ``PRECISIONS``."""
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16, cache_enabled=False)  # no cache, for CUDA graphs


def checked_loss(loss: Loss, outputs: Outputs, targets: Tensor) -> Tensor:
    """The loss, a scalar that depends on weights.

    Raises:
        ArgumentError: the loss cannot be computed, is no scalar tensor, or depends on no weight.
    """
    try:
        value = loss(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = " and ".join(_described(values) for values in (outputs, targets))
        raise ArgumentError(
            "loss", loss, f"a function that accepts {given} ({' '.join(str(error).split())})"
        ) from error
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
        raise ArgumentError("loss", _described(value), "a function that returns a floating-point scalar tensor")
    if torch.is_grad_enabled() and not value.requires_grad:
        allowed = "a function whose result depends on the weights (is it detached, or are all weights frozen?)"
        raise ArgumentError("loss", "a value without a gradient", allowed)
    return value


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


def backward(
    forward: Callable[[Tensor], Outputs],
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    parts: int = 1,
    autocast: Autocast = nullcontext,
    unsynchronized: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, list[Outputs]]:
    """Adds up the gradients of a batch, passed in ``parts``.

    Args:
        unsynchronized: entered for all parts but the last, since ranks average gradients once.

    Returns:
        The loss, detached: the mean of the parts' losses by size; and, of several parts, their outputs.
    """
    value: Tensor | float = 0.0
    outputs_of_parts: list[Outputs] = []
    micro_batches = [(inputs, targets)]
    if parts > 1:
        micro_batches = list(zip(inputs.chunk(parts), targets.chunk(parts), strict=True))
    for number, (micro_inputs, micro_targets) in enumerate(micro_batches, 1):
        with unsynchronized() if number < len(micro_batches) else nullcontext():
            with autocast():
                outputs = forward(micro_inputs)
                if len(micro_batches) > 1:
                    outputs_of_parts.append(tree_map_only(Tensor, lambda values: values.detach().clone(), outputs))
                share = checked_loss(loss, outputs, micro_targets)
            if len(micro_batches) > 1:
                share = share * (len(micro_inputs) / len(inputs))
            share.backward()
        value = value + share.detach()
    return cast(Tensor, value), outputs_of_parts


def predict(
    forward: Callable[[Tensor], Outputs], inputs: Tensor, autocast: Autocast, gradients: bool = False
) -> Outputs:
    """Outputs in the precision of training; those below float32 as float32.

    Args:
        gradients: whether the forward pass takes derivatives.
    """
    with torch.set_grad_enabled(gradients), autocast():
        outputs = forward(inputs.clone())
    return tree_map_only(Tensor, _at_least_float32, outputs)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.detach().float() if values.dtype in (torch.float16, torch.bfloat16) else values.detach()

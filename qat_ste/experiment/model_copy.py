"""Copies models with what ``copy.deepcopy`` loses or refuses: hooks and attributes of parameters, computed tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.text import of_error


def copy_model(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model`` but process groups, as those of ``SyncBatchNorm``.

    Parameters keep their hooks and attributes. Tensors that a forward pass computes and stores in its module, as
    old-style ``weight_norm``, ``spectral_norm`` and ``prune`` do, are copied as constants until the next pass.

    Raises:
        ArgumentError: a part of the model cannot be copied; names it.
    """
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _computed(model)}
    memo |= {id(group): group for module in model.modules() for group in _process_groups(module)}
    try:
        copied = copy.deepcopy(model, memo)
        for parameter in model.parameters():
            _copy_extras(parameter, memo[id(parameter)], memo)
    except Exception as error:  # a foreign object may raise anything
        allowed = f"a function that returns a model that can be copied ({_culprit(model)}{of_error(error)})"
        raise ArgumentError("build_model", type(model).__name__, allowed) from error
    return copied


def _computed(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                yield value


def _process_groups(module: nn.Module) -> list[object]:
    """The process groups that are attributes of this module, which cannot be copied."""
    if not dist.is_available():
        return []
    return [value for value in vars(module).values() if isinstance(value, dist.ProcessGroup)]


def _copy_extras(parameter: nn.Parameter, copied: nn.Parameter, memo: dict[int, Any]) -> None:
    vars(copied).update(copy.deepcopy(vars(parameter), memo))
    for hook in (parameter._backward_hooks or {}).values():
        copied.register_hook(copy.deepcopy(hook, memo))
    for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
        copied.register_post_accumulate_grad_hook(copy.deepcopy(hook, memo))


def _culprit(model: nn.Module) -> str:
    """The attribute that cannot be copied, as "layer1.generator: "; empty if each can be copied alone."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                if attribute not in ("_modules", "_parameters", "_buffers") and not isinstance(value, Tensor):
                    copy.deepcopy(value)
            except Exception:  # as above
                return f"{name}.{attribute}: ".lstrip(".")
    return ""

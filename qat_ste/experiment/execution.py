"""Where training steps are computed, and how torch executes them: eagerly, compiled, or as CUDA graphs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.sections import EXECUTIONS
from qat_ste.base.text import one_line

log = logging.getLogger(__name__)


def find_device(name: Any, launching: bool = False) -> torch.device:
    """The device of this name; of ``auto`` a GPU where there is one. Each local rank has a GPU of its own.

    Args:
        launching: for processes that this one starts; then no tensor is made on a GPU, since that takes hundreds of
            megabytes there for as long as this process lives.

    Raises:
        ArgumentError: no tensor can be made there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.device_count() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if not launching or device.type != "cuda":
            torch.zeros(1, device=device).item()
        elif device.index >= (gpus := torch.cuda.device_count()):
            raise RuntimeError(f"it has {gpus} GPUs")
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = one_line(str(error).splitlines()[0], 200)
        raise ArgumentError("device", name, f"a device that this machine has ({reason})") from None
    return device


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may use TF32, which rounds to 10 bits, coarser than the measured differences."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def warn_of_tf32(device: torch.device) -> None:
    """Warns if convolutions or matrix products use TF32, as torch's convolutions do by default."""
    if device.type == "cuda" and _tf32():
        log.warning(
            "TF32 is on, whose rounding may drown what is measured; to turn it off, set "
            "torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 to False"
        )


def _tf32() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # the user chose precisions by torch's newer settings, which these cannot express
        return False


def check_execution(execution: str, device: torch.device, ranks: int, accumulate: int) -> None:
    """Raises ArgumentError where CUDA graphs cannot be used."""
    if execution != "graph":
        return
    if device.type != "cuda" or ranks > 1:
        raise ArgumentError("execution", execution, "eager or compile: CUDA graphs need one GPU")
    if accumulate > 1:  # gradients of captured passes alias (pytorch issue 181723)
        raise ArgumentError("execution", execution, "eager or compile: CUDA graphs do not accumulate gradients")


def candidates(accumulate: int, replayable: bool = True) -> tuple[str, ...]:
    """The ways of execution that ``auto`` chooses from on a GPU; ``replayable``: whether graphs repeat the passes."""
    return tuple(name for name in EXECUTIONS[1:] if name != "graph" or (accumulate == 1 and replayable))


class _Passes(nn.Module):
    """Wraps a module: torch replaces the forward of the wrapper, and the module keeps its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.module(inputs)
        return outputs


class Graphed:
    """A module whose passes are CUDA graphs, captured at the first inputs; others in shape or type run eagerly.

    Graphs read and write the memory that they were captured with. So parameters and buffers must be at the same
    addresses in each call. Quantized weights are, since ``FlatWeights`` puts them into the same buffer for each pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._graphs: Callable[[Tensor], Tensor] | None = None
        self._inputs: tuple[Any, ...] = ()
        self._addresses: list[int] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        kind = inputs.shape, inputs.dtype
        if self._graphs is None:
            self._graphs, self._inputs = self._captured(inputs), kind
            self._addresses = self._current_addresses()
        elif self._addresses != self._current_addresses():
            allowed = (
                "eager or compile: the optimizer or the model replaces tensors that CUDA graphs were captured with"
            )
            raise ArgumentError("execution", "graph", allowed)
        outputs: Tensor = (self._graphs if kind == self._inputs else self._module)(inputs)
        return outputs

    def _current_addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self._module.parameters(), *self._module.buffers())]

    def _captured(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Captures the graphs, which runs the module several times; restores its buffers and the generators."""
        before = [buffer.clone() for buffer in self._module.buffers()]
        on_gpu: AbstractContextManager[Any] = torch.cuda.device(inputs.device) if inputs.is_cuda else nullcontext()
        with on_gpu, torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            graphs = torch.cuda.make_graphed_callables(  # on the current device
                _Passes(self._module), (inputs.clone(),), allow_unused_input=True
            )
        for buffer, values in zip(self._module.buffers(), before, strict=True):
            buffer.copy_(values)
        return cast(Callable[[Tensor], Tensor], graphs)


def executed(module: nn.Module, execution: str) -> Callable[[Tensor], Tensor]:
    """The module, called in one of the ways of ``EXECUTIONS``."""
    if execution == "compile":
        return torch.compile(module)  # type: ignore[return-value]
    return Graphed(module) if execution == "graph" else module


def fastest(candidates: Iterable[tuple[str, Callable[[], object]]], steps: int, repeats: int = 5) -> str:
    """Name of the candidate that takes the least time for ``steps`` calls.

    The first two calls, which may compile or capture, count as measured; each later call counts as the fastest of
    ``repeats``. A candidate that raises is not chosen.

    Raises:
        RuntimeError: all candidates raised.
    """
    seconds: dict[str, float] = {}
    faults = []
    for name, call in candidates:
        try:
            times = [_seconds(call) for _ in range(2 + repeats)]
        except Exception as error:  # a compiler may raise anything
            faults.append(f"{name}: {type(error).__name__}: {error}")
        else:
            seconds[name] = sum(times[:2]) + (steps - 2) * min(times[2:])
    if not seconds:
        raise RuntimeError("; ".join(faults))
    return min(seconds, key=lambda name: seconds[name])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""How training steps are computed: precision, accumulation, and by which of torch's ways of execution."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

PRECISIONS = ("fp32", "bf16")
MODES = ("auto", "eager", "compile", "graph")


@dataclass(frozen=True)
class Execution:
    """How a training step is computed.

    Args:
        precision: ``fp32``, or ``bf16`` for forward and backward passes under autocast, whose rounding is larger
            than most of what is measured here; latent weights, maps and metrics stay as they are.
        accumulate: parts that a rank's batch is worked through in; their gradients are those of the whole, but for
            layers that look across the batch.
        mode: of forward and backward passes: ``eager``, the reference, on a CPU the same to the bit each time;
            ``compile``, by ``torch.compile``; ``graph``, by CUDA graphs; ``auto``: eager on a CPU and on several
            ranks, on a GPU whatever a few steps of each say will be done first.
        sync_batchnorm: whether batch norm takes its statistics over all ranks of a member (CUDA).

    Raises:
        ValueError: an argument is out of its bounds.
    """

    precision: str = "fp32"
    accumulate: int = 1
    mode: str = "auto"
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be a whole number of at least 1, got {self.accumulate!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.mode == "graph" and self.accumulate > 1:  # gradients of captured passes alias (pytorch issue 181723)
            raise ValueError(f"mode graph does not accumulate gradients, got accumulate={self.accumulate}: take eager")

    @property
    def candidates(self) -> tuple[str, ...]:
        """The modes that ``auto`` chooses from on a GPU."""
        return tuple(mode for mode in MODES[1:] if mode != "graph" or self.accumulate == 1)


class _Passes(nn.Module):
    """Has a forward of its own for torch to replace, so that the module keeps the one it has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.module(inputs)
        return outputs


class Graphed:
    """A module's passes as CUDA graphs, captured at the first inputs; inputs of another shape go the eager way."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._graphs: Callable[[Tensor], Tensor] | None = None
        self._shape: torch.Size | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._graphs is None:
            self._graphs, self._shape = self._captured(inputs), inputs.shape
        outputs: Tensor = (self._graphs if inputs.shape == self._shape else self._module)(inputs)
        return outputs

    def _captured(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Capturing runs the module some times over, which must leave neither its buffers nor the noise changed."""
        before = [buffer.clone() for buffer in self._module.buffers()]
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            graphs = torch.cuda.make_graphed_callables(_Passes(self._module), (inputs.clone(),))
        for buffer, values in zip(self._module.buffers(), before, strict=True):
            buffer.copy_(values)
        return cast(Callable[[Tensor], Tensor], graphs)


def executed(module: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    """The module, called in one of the ``MODES``."""
    if mode == "compile":
        return torch.compile(module)  # type: ignore[return-value]
    return Graphed(module) if mode == "graph" else module


def fastest(candidates: Iterable[tuple[str, Callable[[], object]]], steps: int, repeats: int = 5) -> str:
    """Name of the candidate that will be the first to have been called ``steps`` times.

    Its first two calls, which may compile or capture, are counted in; the others are taken to last as long as the
    fastest of ``repeats``. One that raises is out.

    Raises:
        RuntimeError: all did.
    """
    seconds: dict[str, float] = {}
    faults = []
    for name, call in candidates:
        try:
            times = [_seconds(call) for _ in range(2 + repeats)]
        except Exception as error:  # of a compiler anything
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

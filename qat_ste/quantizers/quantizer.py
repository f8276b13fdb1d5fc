"""Base class of weight quantizers, and the quantizer with equally spaced levels."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qat_ste.base.errors import BITS, POSITIVE, ArgumentError, OneOf, require
from qat_ste.base.sections import SATURATIONS

LATENT_DTYPES = (torch.float32, torch.float64)


def check_latent(dtype: torch.dtype, name: str = "latent weights") -> None:
    """Raises ArgumentError unless latent weights can have this dtype; the message starts with ``name``."""
    if dtype not in LATENT_DTYPES:
        raise ArgumentError(name, dtype, "float32 or float64 (use autocast for lower precision)")


class Quantizer(ABC):
    """Rounds each weight to the nearest of its sorted levels, deterministically.

    Thresholds lie midway between neighbouring levels. A weight on a threshold goes to the upper level (unless a
    ``GridQuantizer`` rounds ties to even). A threshold is the same floating-point number in the forward pass, in the
    metrics and in the weight map.

    Args:
        max: the largest |level|, > 0; a float, or a tensor that broadcasts against the weights (per channel).
        saturation: which weights get a gradient. ``range``: those between the outermost levels (the paper);
            ``bin``: also those up to half an interval beyond; ``none``: all.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """

    num_levels: int

    def __init__(self, max: float | Tensor, saturation: str = "range") -> None:
        require(OneOf(SATURATIONS), saturation=saturation)
        if not isinstance(max, Tensor):
            require(POSITIVE, max=max)
        elif not bool(((max > 0) & torch.isfinite(max)).all()):
            raise ArgumentError("max", max, "positive and finite for every channel")
        self.max = max
        self.saturation = saturation

    @abstractmethod
    def with_max(self, max: float | Tensor) -> Quantizer:
        """Returns a quantizer with the same grid and another ``max``."""

    @abstractmethod
    def rescaled(self, max: Tensor) -> Quantizer:
        """``with_max`` for a tensor known to be positive and finite, without looking at it."""

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """All levels, ascending; shape (num_levels, *max.shape), equal to ``self(w)`` for w of the default dtype."""

    @property
    @abstractmethod
    def thresholds(self) -> Tensor:
        """The smallest number that rounds to each level but the lowest; shape (num_levels - 1, *max.shape)."""

    @abstractmethod
    def index(self, w: Tensor) -> Tensor:
        """Index of each weight's level, 0 … num_levels - 1, in the dtype and shape of ``w``."""

    @abstractmethod
    def level(self, index: Tensor) -> Tensor:
        """Level at each index, in the dtype and shape of ``index``."""

    @abstractmethod
    def __call__(self, w: Tensor) -> Tensor:
        """Returns the nearest level of each weight, in the dtype and shape of ``w``."""

    @abstractmethod
    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Offset u, threshold and width of each weight's interval between two levels, in float64.

        w = threshold + u·width with u in [-1/2, 1/2]. Beyond the range, the outermost interval repeats.
        """

    @abstractmethod
    def offset(self, w: Tensor) -> Tensor:
        """u of ``interval`` in the dtype of ``w``: signed distance from the threshold over the interval's width."""

    @abstractmethod
    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        """Smallest and largest weight, in the dtype of ``w``, that gets a gradient under ``range`` or ``bin``."""

    @abstractmethod
    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest number, in the dtype of ``w``, that rounds to the same level as each weight."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Arguments with which ``make_quantizer`` recreates this quantizer."""

    def relative(self, w: Tensor) -> Tensor:
        """w/max, in the dtype and shape of ``w``."""
        return w / (self.max.to(w.dtype) if isinstance(self.max, Tensor) else self.max)

    def gradient_mask(self, w: Tensor) -> Tensor:
        """1 where a weight gets a gradient under ``saturation``, else 0; dtype and shape of ``w``."""
        if self.saturation == "none":
            return torch.ones_like(w)
        return w.clamp(*self.reach(self.saturation, w)).eq_(w)  # several times as fast as multiplying with flags

    def alive(self, w: Tensor) -> Tensor:
        """Whether each weight gets a gradient under ``saturation``; boolean."""
        return self.gradient_mask(w).bool()

    def saturated(self, w: Tensor) -> Tensor:
        """Whether each weight lies outside the range, under any ``saturation``; boolean."""
        return w.clamp(*self.reach("range", w)) != w

    def __repr__(self) -> str:
        max_ = f"tensor{tuple(self.max.shape)}" if isinstance(self.max, Tensor) else f"{self.max:.6g}"
        arguments = ", ".join(f"{key}={max_ if key == 'max' else repr(value)}" for key, value in self.state.items())
        return f"{type(self).__name__}({arguments})"


class UniformQuantizer(Quantizer):
    """Rounds to the nearest of 2^bits equally spaced levels from -max to max.

    With n = 2^bits and the step size Δ = 2·max/(n - 1), thresholds are the whole multiples of Δ from -(n/2 - 1)·Δ
    to (n/2 - 1)·Δ, and levels lie Δ/2 from them (arXiv 2405.05171, section 2). Each is one correctly rounded
    product.

    Args:
        bits: 1 to 16.
        max, saturation: see ``Quantizer``.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
    """

    def __init__(self, bits: int, max: float | Tensor, saturation: str = "range") -> None:
        require(BITS, bits=bits)
        super().__init__(max, saturation)
        self.bits, self.num_levels = bits, 2**bits
        self._reaches: dict[tuple[str, torch.dtype, torch.device], tuple[Any, Any]] = {}
        # Δ rounded to each dtype. Computed here if max is a float, since torch.compile cannot trace `item`.
        self._steps: dict[torch.dtype | tuple[torch.dtype, torch.device], Any] = {}
        if not isinstance(max, Tensor):
            step = 2 * float(max) / (self.num_levels - 1)
            self._steps = {dtype: torch.tensor(step, dtype=dtype, device="cpu").item() for dtype in LATENT_DTYPES}

    def with_max(self, max: float | Tensor) -> UniformQuantizer:
        return UniformQuantizer(self.bits, max, self.saturation)

    def rescaled(self, max: Tensor) -> UniformQuantizer:
        other = copy.copy(self)
        other.max, other._reaches, other._steps = max, {}, {}
        return other

    def joined(self, quantizers: Sequence[Quantizer], sizes: Sequence[int], like: Tensor) -> UniformQuantizer:
        """One quantizer, bit-identical to these, which differ only in ``max``, on consecutive slices of these sizes."""

        def per_weight(values: Sequence[float | Tensor], dtype: torch.dtype) -> Tensor:
            tensors = [torch.as_tensor(value, dtype=dtype, device=like.device) for value in values]
            return torch.cat([tensor.expand(size) for tensor, size in zip(tensors, sizes, strict=True)])

        quantizer = self.with_max(per_weight([quantizer.max for quantizer in quantizers], torch.float64))
        steps = [cast(UniformQuantizer, quantizer).step_in(like.dtype, like.device) for quantizer in quantizers]
        quantizer._steps[like.dtype, like.device] = per_weight(steps, like.dtype)
        if self.saturation != "none":
            quantizer._reaches[self.saturation, like.dtype, like.device] = quantizer.reach(self.saturation, like)
        return quantizer

    @property
    def state(self) -> dict[str, Any]:
        return {"bits": self.bits, "max": self.max, "saturation": self.saturation}

    @property
    def step(self) -> float | Tensor:
        """Step size Δ, the distance between neighbouring levels; shape of ``max``."""
        return 2 * self.max / (self.num_levels - 1)

    @property
    def levels(self) -> Tensor:
        return self._multiples_of_step([j + 0.5 - self.num_levels / 2 for j in range(self.num_levels)])

    @property
    def thresholds(self) -> Tensor:
        return self._multiples_of_step([i + 1 - self.num_levels / 2 for i in range(self.num_levels - 1)])

    def step_in(self, dtype: torch.dtype, device: torch.device) -> float | Tensor:
        """Δ rounded to ``dtype``; its multiples are the thresholds for weights of that dtype."""
        check_latent(dtype)
        if not isinstance(self.max, Tensor):
            return self._steps[dtype]
        if (dtype, device) not in self._steps:
            step = 2 * self.max.double() / (self.num_levels - 1)
            self._steps[dtype, device] = step.to(device=device, dtype=dtype)
        return self._steps[dtype, device]

    def index(self, w: Tensor) -> Tensor:
        half, step = self.num_levels // 2, self.step_in(w.dtype, w.device)
        # The guess is right or one too low, since 0.25 exceeds any rounding error; an exact comparison corrects it.
        guess = (w / step).add_(half - 0.25).floor_().clamp_(0, 2 * half - 2)
        threshold = (guess + (1 - half)).mul_(step)
        return guess.add_(threshold.le_(w))  # in place: adding boolean flags takes several times as long

    def level(self, index: Tensor) -> Tensor:
        return (index + (0.5 - self.num_levels // 2)).mul_(self.step_in(index.dtype, index.device))

    def __call__(self, w: Tensor) -> Tensor:
        return self.level(self.index(w))

    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        step = self.step_in(w.dtype, w.device)
        step = step.double() if isinstance(step, Tensor) else step
        # In place: on large buffers, allocating memory costs more than arithmetic.
        offset = w.double() / step
        threshold = offset.round()
        return offset.sub_(threshold), threshold.mul_(step), step

    def offset(self, w: Tensor) -> Tensor:
        position = w / self.step_in(w.dtype, w.device)
        return position.sub_(position.round())

    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        cached = self._reaches.get((saturation, w.dtype, w.device))
        if cached is not None:
            return cached
        step = self.step_in(w.dtype, w.device)
        end = (self.num_levels if saturation == "bin" else self.num_levels - 1) / 2 * step
        if saturation == "range":  # despite rounding, max and the outermost level lie inside
            if isinstance(end, Tensor):
                end = torch.maximum(end, torch.as_tensor(self.max).to(end))
            else:
                end = max(end, float(self.max))
        return -end, end

    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        n, index, step = self.num_levels, self.index(w), self.step_in(w.dtype, w.device)
        lowest = ((index - n // 2) * step).masked_fill_(index == 0, -math.inf)
        highest = torch.nextafter((index + (1 - n // 2)) * step, w.new_tensor(-math.inf))
        return lowest, highest.masked_fill_(index == n - 1, math.inf)

    def _multiples_of_step(self, multiples: list[float]) -> Tensor:
        dtype, device = torch.get_default_dtype(), torch.device("cpu")
        if isinstance(self.max, Tensor):
            dtype, device = self.max.dtype, self.max.device
        step = torch.as_tensor(self.step_in(dtype, device), dtype=dtype)
        return torch.tensor(multiples).to(step).reshape(-1, *[1] * step.ndim) * step

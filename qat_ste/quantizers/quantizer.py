"""Weight quantizers: sorted levels with thresholds midway between them; here the equally spaced ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

SATURATIONS = ("range", "bin", "none")
LATENT_DTYPES = (torch.float32, torch.float64)


def check_latent(dtype: torch.dtype, what: str = "latent weights") -> None:
    """Raises ValueError for what latent weights cannot be."""
    if dtype not in LATENT_DTYPES:
        raise ValueError(f"{what} must be float32 or float64, got {dtype}: use autocast for less")


class Quantizer(ABC):
    """A sorted grid of levels with thresholds midway, deterministic rounding to the nearest.

    A weight on a threshold goes to the upper level. Each threshold is the same floating-point number wherever it is
    compared: in the forward pass, in the metrics, in the weight map.

    Args:
        max: the largest |level|, > 0; a float, or a tensor that broadcasts against the weights (per channel).
        saturation: where the backward pass is alive. ``range``: between the outermost levels (the paper); ``bin``:
            half an interval beyond, the whole outer bins; ``none``: everywhere.

    Raises:
        ValueError: an argument is out of its bounds.
    """

    num_levels: int

    def __init__(self, max: float | Tensor, saturation: str = "range") -> None:
        if saturation not in SATURATIONS:
            raise ValueError(f"saturation must be one of {', '.join(SATURATIONS)}, got {saturation!r}")
        if isinstance(max, Tensor):
            if not bool(((max > 0) & torch.isfinite(max)).all()):
                raise ValueError("max must be positive and finite for every channel")
        elif not isinstance(max, Real) or not (max > 0 and math.isfinite(max)):
            raise ValueError(f"max must be a positive finite number, got {max!r}")
        self.max = max
        self.saturation = saturation

    @abstractmethod
    def with_max(self, max: float | Tensor) -> Quantizer:
        """The same grid with another range."""

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """All levels, ascending; shape (num_levels, *max.shape), as ``self(w)`` gives them for default-dtype w."""

    @property
    @abstractmethod
    def thresholds(self) -> Tensor:
        """All thresholds, ascending; shape (num_levels - 1, *max.shape)."""

    @abstractmethod
    def index(self, w: Tensor) -> Tensor:
        """Number of the level of each weight, 0 … num_levels - 1, in the dtype and shape of ``w``."""

    @abstractmethod
    def level(self, index: Tensor) -> Tensor:
        """Values of the levels with these numbers, in the dtype and shape of ``index``."""

    @abstractmethod
    def __call__(self, w: Tensor) -> Tensor:
        """Nearest level of each weight, in the dtype and shape of ``w``."""

    @abstractmethod
    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Offset u, threshold and width of the interval between two levels that each weight lies in, in float64.

        w = threshold + u·width with u in [-1/2, 1/2]. Beyond the range the outermost interval is repeated.
        """

    @abstractmethod
    def offset(self, w: Tensor) -> Tensor:
        """u of ``interval`` in the dtype of ``w``: signed distance from the threshold in widths of the interval."""

    @abstractmethod
    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        """Smallest and largest weight of ``w``'s dtype that the backward pass reaches: ``range`` or ``bin``."""

    @abstractmethod
    def cell(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest number (in the dtype of ``w``) on the level of each weight."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Arguments of ``make_quantizer`` that make this quantizer anew."""

    def relative(self, w: Tensor) -> Tensor:
        """w/max, in the dtype and shape of ``w``."""
        return w / (self.max.to(w.dtype) if isinstance(self.max, Tensor) else self.max)

    def gradient_mask(self, w: Tensor) -> Tensor:
        """1 where the backward pass reaches a weight, by ``saturation``, else 0; dtype and shape of ``w``."""
        if self.saturation == "none":
            return torch.ones_like(w)
        return w.clamp(*self.reach(self.saturation, w)).eq_(w)  # several times as fast as flags to multiply with

    def alive(self, w: Tensor) -> Tensor:
        """The same as flags."""
        return self.gradient_mask(w).bool()

    def saturated(self, w: Tensor) -> Tensor:
        """Whether each weight lies beyond the range, whatever ``saturation`` makes of it; boolean."""
        return w.clamp(*self.reach("range", w)) != w

    def __repr__(self) -> str:
        max_ = f"tensor{tuple(self.max.shape)}" if isinstance(self.max, Tensor) else f"{self.max:.6g}"
        arguments = ", ".join(f"{key}={max_ if key == 'max' else repr(value)}" for key, value in self.state.items())
        return f"{type(self).__name__}({arguments})"


class UniformQuantizer(Quantizer):
    """2^bits equally spaced levels from -max to max, deterministic rounding to the nearest.

    With n = 2^bits and Δ = 2·max/(n - 1), thresholds are the whole multiples of Δ from -(n/2 - 1)·Δ to
    (n/2 - 1)·Δ, and levels lie half a step beside them (arXiv 2405.05171, section 2). Each is one correctly
    rounded product.

    Args:
        bits: 1 to 16.
        max, saturation: as for every ``Quantizer``.

    Raises:
        ValueError: an argument is out of its bounds.
    """

    def __init__(self, bits: int, max: float | Tensor, saturation: str = "range") -> None:
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(f"bits must be a whole number from 1 to 16, got {bits!r}")
        super().__init__(max, saturation)
        self.bits, self.num_levels = bits, 2**bits
        # Δ as the dtypes of latent weights have it; of a float ahead of time, since a compiler cannot trace `item`.
        self._ends: dict[tuple[str, torch.dtype, torch.device], tuple[Any, Any]] = {}
        self._steps: dict[torch.dtype | tuple[torch.dtype, torch.device], Any] = {}
        if not isinstance(max, Tensor):
            step = 2 * float(max) / (self.num_levels - 1)
            self._steps = {dtype: torch.tensor(step, dtype=dtype, device="cpu").item() for dtype in LATENT_DTYPES}

    def with_max(self, max: float | Tensor) -> UniformQuantizer:
        return UniformQuantizer(self.bits, max, self.saturation)

    def joined(self, quantizers: Sequence[Quantizer], sizes: Sequence[int], like: Tensor) -> UniformQuantizer:
        """To the bit what each of ``quantizers``, which differ in ``max`` alone, is to so many neighbouring weights."""

        def spread(values: Sequence[float | Tensor], dtype: torch.dtype) -> Tensor:
            each = [torch.as_tensor(value, dtype=dtype, device=like.device) for value in values]
            return torch.cat([value.expand(size) for value, size in zip(each, sizes, strict=True)])

        quantizer = self.with_max(spread([quantizer.max for quantizer in quantizers], torch.float64))
        steps = [cast(UniformQuantizer, quantizer).step_in(like.dtype, like.device) for quantizer in quantizers]
        quantizer._steps[like.dtype, like.device] = spread(steps, like.dtype)
        if self.saturation != "none":
            quantizer._ends[self.saturation, like.dtype, like.device] = quantizer.reach(self.saturation, like)
        return quantizer

    @property
    def state(self) -> dict[str, Any]:
        return {"bits": self.bits, "max": self.max, "saturation": self.saturation}

    @property
    def step(self) -> float | Tensor:
        """Δ, the distance of neighbouring levels; shape of ``max``."""
        return 2 * self.max / (self.num_levels - 1)

    @property
    def levels(self) -> Tensor:
        return self._grid([j + 0.5 - self.num_levels / 2 for j in range(self.num_levels)])

    @property
    def thresholds(self) -> Tensor:
        return self._grid([i + 1 - self.num_levels / 2 for i in range(self.num_levels - 1)])

    def step_in(self, dtype: torch.dtype, device: torch.device) -> float | Tensor:
        """Δ rounded to ``dtype``: the number whose multiples are the thresholds of weights of that dtype."""
        check_latent(dtype)
        if not isinstance(self.max, Tensor):
            return self._steps[dtype]
        if (dtype, device) not in self._steps:
            step = 2 * self.max.double() / (self.num_levels - 1)
            self._steps[dtype, device] = step.to(device=device, dtype=dtype)
        return self._steps[dtype, device]

    def index(self, w: Tensor) -> Tensor:
        """Number of the level of each weight, 0 … 2^bits - 1, in the dtype and shape of ``w``."""
        half, step = self.num_levels // 2, self.step_in(w.dtype, w.device)
        # A guess that is right or one too low (the quarter outweighs any rounding), then one exact comparison.
        guess = (w / step).add_(half - 0.25).floor_().clamp_(0, 2 * half - 2)
        threshold = (guess + (1 - half)).mul_(step)
        return guess.add_(threshold.le_(w))  # in place: flags of their own type would take several times as long

    def level(self, index: Tensor) -> Tensor:
        return (index + (0.5 - self.num_levels // 2)).mul_(self.step_in(index.dtype, index.device))

    def __call__(self, w: Tensor) -> Tensor:
        return self.level(self.index(w))

    def interval(self, w: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        step = self.step_in(w.dtype, w.device)
        step = step.double() if isinstance(step, Tensor) else step
        # In place where it can be: on large buffers fresh memory costs more than arithmetic.
        offset = w.double() / step
        threshold = offset.round()
        return offset.sub_(threshold), threshold.mul_(step), step

    def offset(self, w: Tensor) -> Tensor:
        position = w / self.step_in(w.dtype, w.device)
        return position.sub_(position.round())

    def reach(self, saturation: str, w: Tensor) -> tuple[Any, Any]:
        known = self._ends.get((saturation, w.dtype, w.device))
        if known is not None:
            return known
        step = self.step_in(w.dtype, w.device)
        end = (self.num_levels if saturation == "bin" else self.num_levels - 1) / 2 * step
        if saturation == "range":  # rounding must leave neither max nor the outermost level outside
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

    def _grid(self, multiples: list[float]) -> Tensor:
        dtype, device = torch.get_default_dtype(), torch.device("cpu")
        if isinstance(self.max, Tensor):
            dtype, device = self.max.dtype, self.max.device
        step = torch.as_tensor(self.step_in(dtype, device), dtype=dtype)
        return torch.tensor(multiples).to(step).reshape(-1, *[1] * step.ndim) * step

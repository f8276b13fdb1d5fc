"""Learning-rate schedules: functions step -> factor on each tensor's own learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """1 at every step."""
    return lambda step: 1.0


def cosine(steps: int) -> Schedule:
    """From 1 at step 0 to 0 at ``steps``."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def step_decay(steps: int, decay: float = 0.1, milestones: tuple[float, ...] = (0.5, 0.75)) -> Schedule:
    """Multiplied by ``decay`` at each of the ``milestones``, shares of all steps."""
    return lambda step: decay ** sum(step >= milestone * steps for milestone in milestones)


def warmup(steps: int, after: Schedule) -> Schedule:
    """Linear from 0 over ``steps`` (the first step has factor 0), then ``after`` counted from there."""
    return lambda step: step / steps if step < steps else after(step - steps)


def by_name(name: str, steps: int, warmup_fraction: float) -> Schedule:
    """The schedule ``constant``, ``cosine`` or ``step`` over ``steps``, its warm-up included."""
    warmup_steps = round(warmup_fraction * steps)
    rest = max(1, steps - warmup_steps)
    after = {"constant": constant, "cosine": lambda: cosine(rest), "step": lambda: step_decay(rest)}[name]()
    return warmup(warmup_steps, after) if warmup_steps else after

"""Learning-rate schedules: functions step -> factor on all learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable

from qat_ste.base.sections import Training

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """The factor is 1 at every step."""
    return lambda step: 1.0


def cosine(steps: int) -> Schedule:
    """The factor falls from 1 at step 0 to 0 at step ``steps``, along half a cosine."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def step_decay(steps: int, decay: float = 0.1, milestones: tuple[float, ...] = (0.5, 0.75)) -> Schedule:
    """The factor is multiplied by ``decay`` at each of the ``milestones``, which are shares of ``steps``."""
    return lambda step: decay ** sum(step >= milestone * steps for milestone in milestones)


def warmup(steps: int, after: Schedule) -> Schedule:
    """The factor grows linearly from 0 at step 0 over ``steps`` steps; then the schedule ``after`` starts."""
    return lambda step: step / steps if step < steps else after(step - steps)


def by_name(name: str, steps: int, warmup_fraction: float) -> Schedule:
    """The schedule ``constant``, ``cosine`` or ``step`` over ``steps`` steps, including the warm-up."""
    warmup_steps = round(warmup_fraction * steps)
    remaining = max(1, steps - warmup_steps)
    after = {"constant": constant, "cosine": lambda: cosine(remaining), "step": lambda: step_decay(remaining)}[name]()
    return warmup(warmup_steps, after) if warmup_steps else after


def schedule_of(training: Training, steps: int) -> Schedule:
    """The schedule of a training of ``steps`` steps."""
    if callable(training.schedule):
        return training.schedule
    return by_name(training.schedule, steps, training.warmup)

"""Cost of a cohort of learning rates against trainings one by one."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from qat_ste.base.sections import Quantization, Training
from qat_ste.estimators import Tanh
from qat_ste.experiment.trials import Trial, train_trials

from .networks import OPTIMIZER, Setting
from .timing import Figure, Stopwatch, interleaved, ratios

RATES = [1e-3 * 2**power for power in range(8)]


def rates_together(setting: Setting, steps: int) -> Figure:
    """Measures a cohort of 8 learning rates in units of 8 trainings, with checks and evaluation, of ``steps`` each."""
    batches = [setting.batch() for _ in range(steps)]
    train = partial(
        train_trials, setting.build, batches, loss=F.cross_entropy, optimizer=OPTIMIZER, validation=batches[:2],
        test=batches[:2], quantization=Quantization(), training=Training(steps=steps),
    )  # fmt: skip
    trials = {rate: Trial(Tanh(5.5), rate) for rate in RATES}

    def one_by_one() -> None:
        for rate, trial in trials.items():
            train(trials={rate: trial})

    contestants = {"together": lambda: train(trials=trials), "one by one": one_by_one}
    seconds = interleaved(contestants, 1, setting.rounds, Stopwatch())
    measured = ratios(seconds["together"], seconds["one by one"])
    what = f"8 learning rates together, in units of one by one, {steps} steps"
    return Figure(f"{setting}, {torch.get_num_threads()} threads", what, "×", *measured)

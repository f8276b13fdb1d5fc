"""Cost of a comparison relative to plain fp32 training of the same network, in total and by phase."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch.nn.functional as F
from torch import nn

from qat_ste.base.sections import Quantization
from qat_ste.data.in_memory import InMemoryBatches, Split
from qat_ste.experiment.evaluation import evaluate
from qat_ste.loggers.files import RunFolder
from qat_ste.loggers.wandb import WandbLogger

from .networks import Members, Plain, Setting, textbook
from .timing import Contestant, Figure, Stopwatch, difference, interleaved, ratios, total

LOG_EVERY = 10  # as in a run of 2,000 steps with the default of 200 rows
IMAGES = 1024  # in the data set that batches are drawn from
COMPARISON, TEXTBOOK = "all metrics / plain", "all metrics / textbook network"
METRICS, METRICS_NET = "metrics, timed directly", "metrics, steps with minus steps without"
LOGGING = "a row per step to metrics.jsonl and W&B offline"


def whole_steps(
    setting: Setting, members: int, bars: Mapping[str, float], quantization: Quantization | None = None
) -> list[Figure]:
    """Measures ratios to plain fp32 steps of as many networks; ``bars`` are targets by name of the figure."""
    batch, watch, unwatched, training = setting.batch(), Stopwatch(), Stopwatch(), setting.training
    of_members = training | {"quantization": quantization}
    full = Members(setting.build(), members, batch, watch, metrics=True, **of_members)
    contestants: dict[str, Contestant] = {
        "plain": Plain([setting.build() for _ in range(members)], batch, unwatched, **training).step,
        "bare": Members(setting.build(), members, batch, unwatched, metrics=False, **of_members).step,
        "full": full.step,
        "row": full.row,
    }
    if setting.network == "keras_cnn":
        networks = [textbook(cast(nn.Sequential, setting.build())) for _ in range(members)]
        contestants["textbook"] = Plain(networks, batch, unwatched).step
    seconds = interleaved(contestants, setting.steps, setting.rounds, watch)
    plain, bare = seconds["plain"], seconds["bare"]
    rows = [value / LOG_EVERY for value in seconds["row"]]
    whole = total(seconds["full"], rows)
    results = {
        COMPARISON: ("×", ratios(whole, plain)),
        "no metrics / plain": ("×", ratios(bare, plain)),
        METRICS: ("%", ratios(total(seconds["observe"], rows), plain)),
        METRICS_NET: ("%", ratios(difference(whole, bare), plain)),
    }
    if "textbook" in seconds:
        results[TEXTBOOK] = ("×", ratios(whole, seconds["textbook"]))
    levels = "" if quantization is None else f", {quantization.levels or f'{quantization.bits} bits'}"
    where = f"{setting}, {members} members{levels}"
    return [Figure(where, what, unit, *values, bar=bars.get(what)) for what, (unit, values) in results.items()]


def phases(setting: Setting, bars: Mapping[str, float]) -> list[Figure]:
    """Measures each phase of a step of two members, as a share of two plain fp32 steps."""
    members, batch, watch, unwatched = 2, setting.batch(), Stopwatch(), Stopwatch()
    full = Members(setting.build(), members, batch, watch, metrics=True)
    assert full.monitor is not None
    measured = next(iter(full.monitor.divergences.values())).metrics
    data = InMemoryBatches(Split(setting.images(IMAGES), batch[1].new_zeros(IMAGES)), setting.batch_size, True, 0)
    with TemporaryDirectory() as folder:
        files, wandb, steps = RunFolder(Path(folder)), WandbLogger(Path(folder), "benchmark", {}), count(1)

        def log() -> None:
            row = {"step": next(steps), **values}
            with watch("files"):
                files.log_row(row)
            with watch("W&B"):
                wandb.log_row(row)

        contestants: dict[str, Contestant] = {
            "plain": Plain([setting.build() for _ in range(members)], batch, watch).step,
            "bare": Members(setting.build(), members, batch, unwatched, metrics=False).step,
            "full": full.step,
            "data": partial(next, data.starting_at(0)),
            "validation": lambda: evaluate(full.cohort, [batch], F.cross_entropy, 0),
            "row": full.row,
            "log": log,
        }
        contestants |= {metric.name: metric.sums for metric in measured}
        values = full.row()
        seconds = interleaved(contestants, setting.steps, setting.rounds, watch)
        files.close(0)
        wandb.close(0)
    shares = {
        "data: a batch from memory": seconds["data"],
        "forward, plain": seconds["forward"],
        "backward, plain": seconds["backward"],
        "optimizer, plain": seconds["optimizer"],
        "quantizer and estimator (difference)": difference(seconds["bare"], seconds["plain"]),
        "metrics per step: levels, changes, paths": seconds["observe"],
        "metrics per row: values over time": seconds["row"],
        **{f"{metric.name}, one call": seconds[metric.name] for metric in measured},
        "a row to metrics.jsonl": seconds["files"],
        "a row to W&B offline": seconds["W&B"],
        LOGGING: seconds["log"],
        "validation on one batch": seconds["validation"],
    }
    return [
        Figure(str(setting), what, "%", *ratios(share, seconds["plain"]), bar=bars.get(what))
        for what, share in shares.items()
    ]

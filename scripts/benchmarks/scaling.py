"""Cost of a comparison against the number of quantized weights and of members."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from qat_ste.models.initialization import he_uniform_

from .comparison import LOG_EVERY
from .networks import Members, Plain, Setting
from .timing import Contestant, Figure, Stopwatch, interleaved, ratios, spread, total

WIDTHS = {100: 200, 320: 100, 1000: 20, 3200: 5, 10_000: 1}  # of a square layer: steps per round
STEP, METRICS, PLAIN = "a step with all metrics", "metrics alone", "plain fp32 steps"


def one_layer(width: int) -> nn.Module:
    """Returns a square layer of width² weights. On one image it costs two passes over its weights, which all move."""
    return he_uniform_(nn.Linear(width, width, bias=False), biases=False)


def over_weights(width: int, steps: int, rounds: int) -> list[Figure]:
    """Measures seconds per step of two members of ``one_layer``, and of two plain steps of one (to save memory)."""
    watch, batch = Stopwatch(), (torch.randn(1, width), torch.zeros(1, dtype=torch.long))
    members = Members(one_layer(width), 2, batch, watch, metrics=True, include=["Linear"])
    plain = Plain([one_layer(width)], batch, Stopwatch())
    contestants: dict[str, Contestant] = {"plain": plain.step, "step": members.step, "row": members.row}
    seconds = interleaved(contestants, steps, rounds, watch)
    rows = [value / LOG_EVERY for value in seconds["row"]]
    metrics, weights = total(seconds["observe"], rows), width * width
    figure = partial(Figure, f"one layer of {weights:,} weights, 2 members", x=weights)
    results = {STEP: total(seconds["step"], rows), METRICS: metrics, PLAIN: total(seconds["plain"], seconds["plain"])}
    return [figure(what, "s", *spread(values)) for what, values in results.items()]


def over_members(setting: Setting, most: int) -> list[Figure]:
    """Measures steps of 1 to ``most`` members with all metrics, in plain fp32 steps of one network."""
    watch, batch = Stopwatch(), setting.batch()
    cohorts = {f"{n}": Members(setting.build(), n, batch, watch, metrics=True) for n in range(1, most + 1)}
    contestants: dict[str, Contestant] = {"plain": Plain([setting.build()], batch, watch).step}
    contestants |= {name: members.step for name, members in cohorts.items()}
    contestants |= {f"row of {name}": members.row for name, members in cohorts.items()}
    seconds = interleaved(contestants, setting.steps, setting.rounds, watch)
    return [
        Figure(
            str(setting),
            f"{name} member{'s' * (name != '1')}",
            "×",
            *ratios(total(seconds[name], [v / LOG_EVERY for v in seconds[f"row of {name}"]]), seconds["plain"]),
            x=int(name),
        )
        for name in cohorts
    ]

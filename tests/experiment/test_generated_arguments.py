"""Wrong values for every argument of ``compare``: told by its name, or accepted and trained with."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields

import pytest
import torch

from qat_ste import compare
from tests.arguments import KINDS
from tests.experiment.tiny import batches, network, run

FIELDS = {each.name: kind for kind in KINDS.values() for each in fields(kind)}
NAMES = (*FIELDS, *(name for name in inspect.signature(compare).parameters if name != "execution"))
WRONG = (
    None, True, -1, 0, 0.5, 10**12, 1e308, math.nan, math.inf, "abc", "", "x" * 10_000, [], [1], [None], ["abc"], {}, {"a": 1}, b"a",
    object(), int, dict, lambda *_, **__: None, lambda *_, **__: math.nan, torch.zeros(2), [torch.zeros(2)], [(1, 2)],
    [(torch.zeros(2, 3, 6, 6), torch.zeros(2).long())], [(torch.zeros(2, 1, 6, 6), torch.zeros(3).long())],
    [(torch.zeros(2, 1, 6, 6), torch.full((2,), 99))],
)  # fmt: skip


def told(name: str, value: object) -> str | None:
    """What ``compare`` says of a value; None where it trains with it."""
    try:
        found = run(**({"steps": 1} | {name: value}))
    except (ValueError, TypeError) as error:
        return str(error)
    except FloatingPointError as error:  # a number may be so large that the loss is none
        assert name in ("lr", "l2", "weight_decay")
        return f"{name}: {error}"
    assert found.steps >= 1
    return None


def check(name: str, value: object) -> None:
    message = told(name, value)
    if message is not None:
        assert name in re.findall(r"\w+", message.partition(": ")[0]), f"{name}={value!r:.60}: {message}"
        assert len(message) < 1000
        assert "\n" not in message


def test_every_field_has_a_rule_or_a_check_of_its_own():
    without = {each.name for kind in KINDS.values() for each in fields(kind) if each.metadata["rule"] is None}
    assert without == {"levels", "scale", "device"}


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments(name):
    for value in WRONG:
        check(name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": math.nan}, "lr must be a positive finite number, got nan"),
        ({"steps": 10**12}, "steps must be a whole number from 1 to 100000000, got 1000000000000"),
        ({"estimator": "tanh"}, "estimator must be an Estimator, got 'tanh'"),
        ({"optimizer": lambda groups, lr: 3}, "optimizer must be a function that returns a torch.optim.Optimizer, got 3"),
        ({"build_model": lambda: 5}, "build_model must be a function that returns a torch.nn.Module, got 5"),
        ({"batches": [1]}, "batches must be batches that are pairs of tensors (inputs, targets), got 1"),
        ({"validation": [1]}, "validation must be batches that are pairs of tensors (inputs, targets), got 1"),
        ({"batches": [(torch.zeros(2, 3, 6, 6), torch.zeros(2).long())]}, "batches must be batches that fit the model, which does not accept"),
        ({"batches": lambda shard: None}, "batches must be a function that returns an iterable of batches or TrainingBatches, got None"),
        ({"validation": lambda shard: 3}, "validation must be a function that returns an iterable of batches, got 3"),
        ({"validation": [(torch.zeros(2, 3, 6, 6), torch.zeros(2).long())]}, "validation must be batches that fit the model, which does not accept"),
        ({"loss": lambda outputs, targets: outputs}, "loss must be one that fits batches: a function that returns a floating-point scalar tensor, got 'float32 of shape (16, 4)'"),
        ({"schedule": lambda step: math.nan}, "schedule must be a function that returns finite numbers (step 0), got nan"),
        ({"levels": 5}, "levels must be one of ternary, fp4_e2m1, nf4, apot, int4, or a list of numbers, got 5"),
        ({"exclude": ["Conv9d"]}, "exclude must be patterns that match modules of the model ('Conv9d' matches none; it has Conv2d, BatchNorm2d, Linear)"),
        ({"device": "nowhere"}, "device must be a device that this machine has ("),
        ({"counterparts": "ste"}, "counterparts must be a list of at least one of ste, naive,"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_each_is_told_by_its_name(changes, message):
    with pytest.raises((ValueError, TypeError)) as raised:
        run(**({"steps": 1} | changes))
    assert str(raised.value).startswith(message)


def test_what_a_model_does_wrong_by_itself_is_its_own_error():
    class Broken(torch.nn.Sequential):
        calls = 0

        def forward(self, inputs):
            Broken.calls += 1
            if Broken.calls == 6:
                raise RuntimeError("its own")
            return super().forward(inputs)

    with pytest.raises(RuntimeError, match="^its own$"):
        run(build_model=lambda: Broken(*network()), batches=batches(), steps=20, validation=None)

"""Python's -O leaves assertions out: no number may hang on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qat_ste

PROGRAM = """
from functools import partial
import torch
from torch import nn
from qat_ste import Metrics, Quantization, Training, compare, estimators

assert not print("asserted")
torch.set_num_threads(1)
batches = [(torch.linspace(-1, 1, 160).view(8, 20), torch.arange(8) % 4)]
comparison = compare(
    lambda: nn.Linear(20, 4), batches, loss=nn.functional.cross_entropy, estimator=estimators.Tanh(k=5.5),
    optimizer=partial(torch.optim.SGD, momentum=0.9), lr=1e-2, validation=batches,
    quantization=Quantization(include=["Linear"]), training=Training(steps=20), metrics=Metrics(every=5),
)
print([sorted(row.items()) for row in comparison.rows], {name: vars(n) for name, n in comparison.counterparts.items()})
"""


def numbers(*flags: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(qat_ste.__file__).parents[1])}
    command = [sys.executable, *flags, "-c", PROGRAM]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.slow
def test_the_same_numbers_without_assertions():
    asserted, numbers_asserted = numbers().split("\n", 1)
    assert asserted == "asserted"
    assert numbers("-OO") == numbers_asserted

"""How a step is computed, beside the plain way of computing it."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from qat_ste.member import Execution

from .tiny import batches, network, run


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def plain():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).double()

    data = [(inputs.double(), targets) for inputs, targets in batches(size=15)]
    arguments = {"build_model": plain, "batches": data, "validation": None, "steps": 12}
    whole = run(**arguments)
    parts = run(**arguments, execution=Execution(accumulate=4))  # of 4, 4, 4 and 3 images
    for name, numbers in whole.counterparts.items():
        assert parts.counterparts[name].weight_alignment_error == pytest.approx(
            numbers.weight_alignment_error, rel=1e-9
        )
    assert [row["ste/train_loss"] for row in parts.rows] == pytest.approx([row["ste/train_loss"] for row in whole.rows])
    other = run(**arguments | {"batches": [(x[:12], y[:12]) for x, y in data]}, execution=Execution(accumulate=4))
    assert other.rows[-1]["ste/train_loss"] != pytest.approx(whole.rows[-1]["ste/train_loss"], rel=1e-6)


def test_bf16_rounds_the_passes_and_leaves_the_latent_weights_alone():
    full, half = (run(steps=10, counterparts=["ste"], execution=Execution(p)) for p in ("fp32", "bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in half.models["ste"].parameters())
    assert half.reference.test_loss != full.reference.test_loss
    assert half.reference.test_loss == pytest.approx(full.reference.test_loss, rel=0.05)
    assert half.counterparts["ste"].initial_alignment_error == 0


@pytest.mark.parametrize(("name", "value", "message"), [
    ("precision", "fp16", "precision must be one of fp32, bf16, got 'fp16'"),
    ("accumulate", 0, "accumulate must be a whole number of at least 1, got 0"),
])  # fmt: skip
def test_execution_refuses(name, value, message):
    with pytest.raises(ValueError, match=message):
        Execution(**{name: value})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_is_eager_but_for_rounding():
    """Without dropout, whose noise a compiler draws in its own way; with it the members still share the noise."""
    arguments = {"steps": 6, "counterparts": ["ste"], "lr": 0.003, "build_model": lambda: network(0.0)}
    eager, compiled = run(**arguments), run(**arguments, execution=Execution(compile=True))
    assert compiled.reference.test_loss == pytest.approx(eager.reference.test_loss, rel=1e-5)
    assert compiled.counterparts["ste"].weight_alignment_error == pytest.approx(
        eager.counterparts["ste"].weight_alignment_error, rel=1e-2
    )
    assert not any("_orig_mod" in name for name in compiled.models["ste"].state_dict())
    noisy = run(steps=6, counterparts=["replica"], execution=Execution(compile=True))
    assert noisy.counterparts["replica"].weight_alignment_error == 0

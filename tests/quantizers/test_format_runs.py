"""Runs with the block formats MXFP4, NVFP4 and INT4, from Python and by ``qat-run``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.fake_quant.fake_quantize import quantized_tensors
from tests.app.test_resume import RUN, read
from tests.conftest import SHORT
from tests.experiment.tiny import network, run
from tests.quantizers.test_formats import FORMATS


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.5])
@pytest.mark.parametrize("name", FORMATS)
def test_infinity_and_nan_are_refused_before_training(name, value):
    def with_value() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.Linear(32, 4))
        with torch.no_grad():
            model[2].weight[1, 3] = value
        return model

    arguments = FORMATS[name] | {"build_model": with_value, "exclude": ["1"], "steps": 1}
    if math.isfinite(value):
        assert run(**arguments).counterparts
        return
    with pytest.raises(ValueError, match="2.weight.* holds NaN or infinity|finite.*2.weight"):
        run(**arguments)


@pytest.mark.parametrize("name", FORMATS)
def test_members_with_blocks(name):
    members = ["ste", "mirrored", "naive", "replica"]
    arguments = FORMATS[name] | {"granularity": 8, "lr": 0.002, "steps": 20, "include": ["Linear"]}
    found = run(**arguments, counterparts=members)
    assert found.counterparts["replica"].weight_alignment_error == 0
    assert found.counterparts["mirrored"].initial_quantized_agreement == 1
    alone = run(**arguments, counterparts=["ste"])
    assert alone.counterparts["ste"] == found.counterparts["ste"], "no member changes another one's scale"


@pytest.mark.parametrize("zeros", ["mxfp4", "nvfp4"])
def test_a_block_of_zeros_trains(zeros):
    def with_zeros() -> nn.Module:
        model = network()
        with torch.no_grad():
            model[5].weight[1] = 0
        return model

    found = run(build_model=with_zeros, steps=20, counterparts=["ste", "mirrored"], **FORMATS[zeros])
    ((_, latent, _),) = quantized_tensors(found.models["reference"])
    assert latent[1].any()
    assert all(math.isfinite(member.weight_alignment_error) for member in found.counterparts.values())


SECOND_LAYER = ("quantizer.exclude=[conv1]", "counterparts=[ste,mirrored]")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4"])
def test_a_run_that_is_cut_off_continues_with_the_same_numbers(qat_run, monkeypatch, name):
    overrides = (f"quantizer={name}", *SECOND_LAYER)
    whole = qat_run(*RUN, *overrides, folder="undisturbed")
    assert whole.code == 0, whole.err
    config = whole.read("results.json")["config"]["quantizer"]
    assert config == config | FORMATS[name] | {"include": ["Conv2d"]}
    observe = DivergenceMonitor.observe

    def fail(self, step, levels):
        if step == 23:
            raise RuntimeError("cut off")
        observe(self, step, levels)

    with monkeypatch.context() as patch:
        patch.setattr(DivergenceMonitor, "observe", fail)
        assert qat_run(*RUN, *overrides).code == 1
    again = qat_run(*RUN, *overrides)
    assert "resumes after step 20" in again.out
    assert read(again.folder) == read(whole.folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantizer=mxfp4"], "quantizer.granularity=32: must be tensor, channel, or a divisor of 9, the weights of a channel, as 9 (conv1.weight); for example quantizer.granularity=channel"),
        (["quantizer.ties=even"], "quantizer.ties=even: must be up for 2^bits levels, which do not include 0; for example quantizer.ties=up"),
        (["quantizer.ties=even", "quantizer.levels=[-1,1]"], "quantizer.ties=even: must be up for levels without 0; for example quantizer.ties=up"),
        (["quantizer=int4", "quantizer.ties=odd"], "quantizer.ties=odd: must be one of up, even; for example quantizer.ties=up"),
        (["quantizer=nvfp4", "quantizer.scale=nvfp"], "quantizer.scale=nvfp: must be a number from"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line(qat_run, overrides, message):
    done = qat_run(*SHORT, *overrides)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith(f"qat-run: {message}")

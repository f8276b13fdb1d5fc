"""What the checks before training refuse, the command tells by its key."""

from __future__ import annotations

from pathlib import Path

MODEL = """
import torch
from torch import nn


class MaxNorm(nn.Linear):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(x)


def build(image_size=8, num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), MaxNorm(144, num_classes))
"""


def test_a_model_that_cannot_be_followed_is_refused_by_its_key(qat_run, tmp_path):
    conf = tmp_path / "conf" / "model"
    conf.mkdir(parents=True)
    (tmp_path / "max_norm_model.py").write_text(MODEL)
    (conf / "mine.yaml").write_text("_target_: max_norm_model.build\n_partial_: true\n")
    run = qat_run(
        "--config-dir", str(tmp_path / "conf"), "model=mine", "quantizer.include=[Conv2d,Linear]", "train.steps=20",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert run.code == 2
    assert run.err.splitlines()[-1].startswith(
        "qat-run: model: build_model must be a function that returns a model whose"
    )
    assert not (tmp_path / "run" / "results.json").exists()


def test_segments_as_long_as_the_run_are_refused(qat_run, tmp_path: Path):
    run = qat_run("train.steps=20", "train.segment=[5,20]", f"hydra.run.dir={tmp_path / 'run'}")
    assert run.code == 2
    assert "train.segment: segment must be shorter than the run of 20 steps, got [5, 20]" in run.err

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
    assert "qat-run: train.segment=[5,20]: must be shorter than the run of 20 steps" in run.err
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_dry_run_counts_the_networks_of_segments(qat_run):
    """Under Adam ``naive`` is the same run as ``ste``: one network."""
    few = ("train.steps=40", "dry_run=true")
    for overrides, members in [
        ((), 4),
        (("train.segment=5",), 7),
        (("train.segment=[5,20]",), 10),
        (("train.segment=[5,20]", "optimizer=adam"), 7),
    ]:
        run = qat_run(*few, *overrides)
        assert run.out.strip().endswith(f"# {members} members x 40 steps of 64")


def test_a_dry_run_counts_mirrored_where_it_is_a_network_of_its_own(qat_run):
    few = ("train.steps=40", "dry_run=true", "counterparts=[ste,mirrored]")
    for overrides, members in [
        ((), 2),
        (("quantizer.scale=absmax",), 3),
        (("quantizer.scale=absmax", "optimizer=adam"), 2),
        (("quantizer.scale=learned", "optimizer=adam"), 3),
    ]:
        assert qat_run(*few, *overrides).out.strip().endswith(f"# {members} members x 40 steps of 64")


def test_a_run_with_segments_says_their_cost_before_it_starts(segment_run, finished_run):
    printed = (segment_run / "stdout.txt").read_text()
    assert "segments of 2, 6 steps: 6 more networks" in printed.partition("step 6/24")[0].splitlines()
    assert "segments of" not in (finished_run / "stdout.txt").read_text()

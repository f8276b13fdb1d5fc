"""The benchmark measures what it says. Speed itself is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste import Quantization, quantize_weights
from qat_ste.estimators import Ste
from scripts.benchmarks.comparison import COMPARISON, phases, whole_steps
from scripts.benchmarks.memory import bytes_a_weight, bytes_held
from scripts.benchmarks.networks import Setting
from scripts.benchmarks.others import OTHERS, OURS, other_implementations, scale_of, with_brevitas, with_torch
from scripts.benchmarks.scaling import over_members, over_weights
from scripts.benchmarks.timing import Stopwatch, interleaved, ratios
from scripts.performance_docs import DOCS, page, scaling
from tests.conftest import ROOT

TINY = Setting("small_cnn", 8, 4, 1, 1)


def test_seconds_are_given_by_phase_and_round():
    watch = Stopwatch()

    def slow() -> None:
        time.sleep(0.002)
        with watch("inside"):
            time.sleep(0.004)

    seconds = interleaved({"slow": slow, "nothing": lambda: None}, 2, 3, watch)
    assert {name: len(values) for name, values in seconds.items()} == {"slow": 3, "nothing": 3, "inside": 3}
    assert min(seconds["slow"]) >= 0.006 > 0.004 > max(seconds["nothing"])
    assert all(0.004 <= inside <= slow - 0.002 for inside, slow in zip(seconds["inside"], seconds["slow"]))


def test_ratios_are_within_rounds():
    """A slow moment affects both numbers of a round; separate medians would give 10 / 2."""
    assert ratios([1, 10, 100], [1, 10, 2]) == (1, 1, 50)


def test_bytes_per_weight_agree_with_the_record():
    record = json.loads((DOCS / "performance" / "record.json").read_text())
    recorded = {figure["what"]: figure["value"] for figure in record["sections"]["memory"]}
    assert bytes_a_weight(300) == pytest.approx(recorded, rel=0.01)


def test_the_page_is_what_the_record_gives():
    record = json.loads((DOCS / "performance" / "record.json").read_text())
    assert (DOCS / "performance.md").read_text() == page(record)


def test_every_section_measures_and_a_missed_bar_is_shown():
    figures = {
        "steps": whole_steps(TINY, 2, {COMPARISON: 1e-9}),
        "phases": phases(TINY, {}),
        "others": other_implementations(TINY, compiled=False),
        "weights": over_weights(20, 1, 1) + over_weights(30, 1, 1),
        "members": over_members(TINY, 3),
        "memory": bytes_held(),
    }
    assert [figure.x for figure in figures["members"]] == [1, 2, 3]
    assert {figure.what for figure in figures["others"] if figure.bar} == {
        f"{ours} / {other}" for ours in OURS for other in OTHERS
    }
    about = {"processor": "one", "threads": 1, "python": "3", "torch": "2"}
    sections = {name: [asdict(figure) for figure in values] for name, values in figures.items()}
    text = page({"machine": about, "sections": sections})
    (line,) = (line for line in text.splitlines() if f"| {COMPARISON} |" in line and "small" in line)
    assert line.endswith("| 0.000 × | missed |")
    assert len(scaling({"sections": sections}).axes) == 2


def test_other_implementations_train_the_same_weights():
    """Torch's operation has our gradients wherever its grid, which lacks a level at +max, has our levels."""
    weight = torch.randn(64, 1, 3, 3) / 2
    models = [nn.Sequential(nn.Conv2d(1, 64, 3, bias=False)) for _ in range(2)]
    for model in models:
        model[0].weight.data = weight.clone()
    ours, theirs = quantize_weights(models[0], Quantization(), Ste()), with_torch(models[1])
    scale = scale_of(weight)
    assert len(theirs[0].weight.unique()) == len(ours[0].weight.unique()) == 4
    torch.testing.assert_close(theirs[0].weight, (weight / scale).round().clamp(-2, 1) * scale)
    torch.testing.assert_close(ours[0].weight, ((weight / scale).floor().clamp(-2, 1) + 0.5) * scale)
    incoming = torch.randn(1, 64, 6, 6)
    for model in (ours, theirs):
        (model(torch.ones(1, 1, 8, 8)) * incoming).sum().backward()
    inside = weight.abs() < 1.4 * scale
    gradients = [model[0].parametrizations.weight.original.grad for model in (ours, theirs)]
    torch.testing.assert_close(gradients[0][inside], gradients[1][inside])
    assert gradients[0].count_nonzero() < gradients[0].numel(), "no gradient beyond the range"


def test_brevitas_rounds_to_the_same_levels_as_torch():
    pytest.importorskip("brevitas")
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1))
    weight, bias, images = model[0].weight.detach().clone(), model[0].bias.detach().clone(), torch.rand(2, 1, 8, 8)
    scale = scale_of(weight)
    levels = (weight / scale).round().clamp(-2, 1) * scale
    outputs = with_brevitas(model)(images)
    torch.testing.assert_close(outputs, F.conv2d(images, levels, bias, stride=2, padding=1))


@pytest.mark.slow
def test_the_command_writes_a_record(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "--only", "memory", "--json", "out/record.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "of each counterpart" in done.stdout
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert [figure["what"] for figure in record["sections"]["memory"]] == list(bytes_a_weight(100))
    assert record["machine"]["torch"] == torch.__version__

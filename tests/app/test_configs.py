"""Every YAML file composes and lists all arguments of its target."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from qat_ste.app.compose import config_dir
from qat_ste.app.schema import parameters

CONF = Path(config_dir())
GROUPS = ("dataset", "model", "estimator", "optimizer", "logger")
OPTIONS = [path.relative_to(CONF) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
WITHOUT_EFFECT = {  # arguments of torch's optimizers that change no result
    "foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}  # fmt: skip
SET_BY_THE_RUN = {"params", "in_channels", "image_size", "num_classes", "context", "folder", "name", "config"}


def composed(*overrides: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_lists_the_arguments_of_its_target(option):
    node = composed(f"{option.parent}={option.stem}")[str(option.parent)]
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    if node._target_ is None:
        assert not arguments
        return
    module, _, name = node._target_.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    inspect.signature(getattr(import_module(module), name)).bind_partial(**arguments)
    assert set(parameters) - WITHOUT_EFFECT - SET_BY_THE_RUN == set(arguments) - SET_BY_THE_RUN


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_states_claim_command_hardware_time_and_numbers(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    header = text[: text.index("defaults:")]
    for word in ("# Claim: ", f"# Command: qat-run experiment={name} ", "# Hardware: ", "# Time: ", "# Measured: "):
        assert re.search(re.escape(word) + r"\S", header), word
    cfg = composed(f"experiment={name}", "train.epochs=3")
    assert cfg.train.epochs == 3
    assert cfg.train.steps_per_epoch == (100 if "mnist" in name else None)
    assert OmegaConf.to_container(cfg, resolve=True)


def test_experiments_are_the_papers():
    sgd, adam, flax = (composed(f"experiment={name}") for name in ("mnist_sgd", "mnist_adam", "mnist_flax_sgd"))
    assert (sgd.optimizer.lr, sgd.optimizer.momentum) == (1e-3, 0.9)
    assert (adam.optimizer.lr, list(adam.optimizer.betas), adam.optimizer.eps) == (1e-4, [0.9, 0.95], 1e-7)
    for cfg in (sgd, adam):
        assert (cfg.train.batch_size, cfg.train.shuffle, cfg.train.l2, cfg.train.epochs) == (128, False, 1e-4, 50)
        assert (cfg.estimator.k, cfg.quantizer.bits, cfg.quantizer.biases, cfg.train.warmup) == (5.5, 2, True, 0.02)
    assert (flax.train.batch_size, flax.train.shuffle, flax.train.l2, flax.train.epochs) == (600, True, 0, 25)
    assert (flax.estimator.k, flax.quantizer.biases) == (6.5, False)


def test_imagenet_is_trained_as_in_the_paper_however_it_is_selected():
    by_groups = composed("dataset=imagenet", "model=resnet50", "estimator=tanh", "optimizer=sgd")
    assert by_groups == composed("experiment=imagenet_sgd", "train.segment=null")
    assert composed("experiment=imagenet_sgd").train.segment == [20, 80]
    train = by_groups.train
    assert (train.epochs, train.batch_size, train.warmup, train.l2) == (100, 256, 0.05, 5e-5)
    assert (by_groups.optimizer.lr, by_groups.optimizer.momentum) == (0.1, 0.9)
    adam = composed("experiment=imagenet_adam")
    assert adam == composed("dataset=imagenet", "model=resnet50", "optimizer=adam", "train.segment=[20,80]")
    assert (list(adam.optimizer.betas), adam.train.epochs) == ([0.9, 0.95], 100)
    assert composed("dataset=imagenet", "train.batch_size=64").train.batch_size == 64
    assert composed("optimizer=sgd").train.batch_size == 64, "other data sets keep the defaults"
    assert by_groups.dataset.image_size == 224


def test_the_penalty_of_imagenet_is_on_kernels_alone():
    from fnmatch import fnmatchcase

    from qat_ste.models import torchvision_model

    patterns = composed("experiment=imagenet_sgd").train.l2_include
    for name, parameter in torchvision_model("resnet50").named_parameters():
        assert any(fnmatchcase(name, pattern) for pattern in patterns) == (parameter.ndim > 1), name


def test_all_yaml_files_are_reachable():
    groups = {
        f"{group}/" for group in (*GROUPS, "experiment", "layers", "quantizer", "recipe", "row", "reproduce", "hydra")
    }
    for path in CONF.rglob("*.yaml"):
        yaml.safe_load(path.read_text())
        relative = path.relative_to(CONF)
        assert str(relative) in ("config.yaml", "atlas.yaml", "tune.yaml") or f"{relative.parts[0]}/" in groups


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["mnist", "mnist_flax", "imagenet"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rows_of_the_matrix_fit_each_experiment(setup, optimizer):
    """Rows change only rate, length, counterparts, or bits with k; each is validated as often as the default row."""
    experiment = composed(f"experiment={setup}_{optimizer}")
    expected = {
        "default": (1, 1, experiment.quantizer.bits, experiment.estimator.k, ["ste", "naive", "jitter"]),
        "scaledown": (3, 0.1, experiment.quantizer.bits, experiment.estimator.k, ["ste"]),
        "scaledown_matched": (10, 0.1, experiment.quantizer.bits, experiment.estimator.k, ["ste"]),
        "bits_1": (1, 1, 1, 2, ["ste", "naive", "jitter"]),
        "bits_4": (1, 1, 4, 18, ["ste", "naive", "jitter"]),
    }
    assert sorted(expected) == sorted(path.stem for path in (CONF / "row").glob("*.yaml"))
    for row, values in expected.items():
        for share in (1.0, 0.08):
            cfg = composed(
                f"experiment={setup}_{optimizer}", f"row={row}", f"reproduce={'full' if share == 1 else 'short'}"
            )
            train = cfg.train
            assert (train.length_scale, train.lr_scale, cfg.quantizer.bits, cfg.estimator.k, cfg.counterparts) == values
            assert train.share == share
            epochs = {"mnist": 50, "mnist_flax": 25, "imagenet": 100}[setup]
            assert parameters(cfg, "train").total_steps(100) == 100 * round(epochs * values[0] * share)
            for key in ("lr_scale", "length_scale", "share"):
                train[key] = experiment.train[key]
            assert cfg.metrics.validate_every == values[0]
            changed = {"counterparts": 0, "quantizer": 0, "estimator": 0, "metrics": 0}
            assert {**cfg} | changed == {**experiment} | changed


def test_a_length_is_at_least_one_whole_epoch():
    cfg = composed("train.epochs=3", "train.share=0.01")
    assert parameters(cfg, "train").total_steps(100) == 100
    cfg = composed("train.steps=1500", "train.length_scale=3", "train.share=0.1")
    assert parameters(cfg, "train").total_steps(100) == 450

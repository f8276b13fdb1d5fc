"""A sweep's configurations are composed from templates: the same as Hydra's own, and so fast that done runs cost little."""

from __future__ import annotations

import json
import resource
import shutil

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from qat_ste.app import run_cli  # noqa: F401  # registers the schema
from qat_ste.app.compose import COMPOSE_ERRORS, config_dir
from qat_ste.app.sweep_loader import SweepLoader
from tests.app.test_sweep import sweep_by_itself
from tests.conftest import SHORT

SWEEPS = {
    "seeds": (["train.seed=1,2,3", "counterparts=[ste,naive]"], 1),
    "groups": (["estimator=tanh,pwl", "optimizer=sgd,adam", "train.seed=0,1"], 4),
    "recipes": (["dataset=digits,imagenet", "optimizer=sgd", "train.batch_size=8,16"], 2),
    "experiments and rows": (["experiment=mnist_sgd,mnist_adam", "row=default,bits_4", "estimator.k=3,4.5"], 4),
    "null, text, interpolation": (["train.epochs=null,3", "optimizer.lr=1e-3,'${train.l2}'", "paths.data=a,'b c'"], 1),
    "lists": (["optimizer=adam", "optimizer.betas=[0.9,0.95],[0.9,0.999]", "train.seed=1,2"], 2),
    "a value and then all around it": (["train.seed=5,6", "train={seed:7,steps:3}"], 2),
    "all around a value and then it": (["train={seed:7,steps:3}", "train.seed=5,6"], 2),
    "added and taken away": (["+optimizer.extra=1,2", "~optimizer.momentum", "train.seed=1,2"], 2),
    "no group": (["dry_run=true,false", "train.seed=1,2"], 2),
}


@pytest.fixture
def hydra():
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir(), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def composed(monkeypatch) -> list[list[str]]:
    """The overrides that Hydra composed from files, in order."""
    calls, original = [], ConfigLoaderImpl.load_configuration

    def load(self, config_name, overrides, *arguments, **named):
        calls.append(overrides)
        return original(self, config_name, overrides, *arguments, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", load)
    return calls


def jobs(overrides: list[str]) -> list[list[str]]:
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return batch


def everything(config: DictConfig) -> tuple:
    flags = {name: (OmegaConf.is_struct(node), OmegaConf.get_type(node)) for name, node in config.items()
             if isinstance(node, DictConfig)}  # fmt: skip
    return OmegaConf.to_container(config), flags, OmegaConf.get_cache(config)


@pytest.mark.parametrize(("overrides", "templates"), SWEEPS.values(), ids=SWEEPS)
def test_each_job_has_the_configuration_that_hydra_composes(hydra, composed, overrides, templates):
    master = hydra.load_configuration("config", ["paths.output=x"], RunMode.MULTIRUN)
    OmegaConf.get_cache(master)["now"] = {"%H": "12"}
    loader = SweepLoader(hydra.get_search_path())
    del composed[:]
    found = [loader.load_sweep_config(master, job) for job in jobs(overrides)]
    found = [loader.load_sweep_config(master, job) for job in jobs(overrides)]
    assert len(composed) == templates
    expected = [hydra.load_sweep_config(master, job) for job in jobs(overrides)]
    assert len(expected) >= 2
    for own, theirs in zip(found, expected, strict=True):
        assert everything(own) == everything(theirs)
        assert [type(node) for node in own.train._content.values()] == [
            type(node) for node in theirs.train._content.values()
        ]


@pytest.mark.parametrize("wrong", ["train.seed=abc", "train.sed=1", "estimator=tanhh", "optimizer@x.y=sgd"])
def test_a_wrong_value_of_a_later_job_is_found(hydra, wrong):
    master = hydra.load_configuration("config", [], RunMode.MULTIRUN)
    loader = SweepLoader(hydra.get_search_path())
    loader.load_sweep_config(master, ["train.seed=1"])
    with pytest.raises(COMPOSE_ERRORS):
        loader.load_sweep_config(master, [wrong])
    again = loader.load_sweep_config(master, ["train.seed=2"])
    assert (again.train.seed, loader.load_sweep_config(master, ["train.seed=3"]).train.seed) == (2, 3)


def test_skipping_a_done_run_takes_a_fraction_of_what_starting_the_command_takes(finished_run, tmp_path, monkeypatch):
    """In processor time, of which a busy machine takes no more; without torch, whose import alone takes longer."""
    results = json.loads((finished_run / "results.json").read_text())
    for seed in range(40):
        (tmp_path / f"{seed}").mkdir()
        results["config"]["train"]["seed"] = seed
        (tmp_path / f"{seed}" / "results.json").write_text(json.dumps(results))
        shutil.copy(finished_run / "status.json", tmp_path / f"{seed}")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    folders = (f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${train.seed}", "logger=none")
    seconds = []
    for runs in (1, 40):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, out, err = sweep_by_itself(tmp_path, *SHORT, *folders, "train.seed=" + ",".join(map(str, range(runs))))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert (code, out.splitlines()[-1].split(":")[0]) == (0, f"{runs} skipped"), err
        assert "| hydra" in err
        assert "| torch" not in err
    assert (seconds[1] - seconds[0]) / 39 < seconds[0] / 5

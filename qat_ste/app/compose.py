"""Finds and composes the YAML files; reports every problem of the overrides, a line each."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.app.job import locked_or_leave, outer_rank, tell
from qat_ste.app.schema import ConfigError, RunConfig, atlas_schema, problems_in, schema
from qat_ste.app.value_checks import unusable
from qat_ste.base.sections import DEFAULT_COUNTERPARTS, SECTIONS
from qat_ste.base.text import shown

ConfigStore.instance().store(name="schema", node=schema(RunConfig))
ConfigStore.instance().store(name="atlas_schema", node=atlas_schema())

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # the last of what is no option of a group
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
_KINDS = {bool: KINDS["Boolean"], int: KINDS["Integer"], float: KINDS["Float"], dict: "keys and values"}


def config_dir() -> str:
    """Folder of the YAML files: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it")


def user_dir(arguments: Sequence[str]) -> str | None:
    """The folder of YAML files that a command line names with --config-dir."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    found: str | None = parser.parse_known_args(arguments)[0].config_dir
    return found


def add_modules_beside(user_dir: str) -> None:
    """Lets ``_target_`` find modules beside the user's folder of YAML files, in jobs of other processes too."""
    parent = str(Path(user_dir).resolve().parent)
    sys.path.append(parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), parent]))


def search_path(user_dir: str | None) -> list[str]:
    """The overrides, at most one, that have YAML files looked for in the user's folder too."""
    return [] if user_dir is None else [f"hydra.searchpath=['file://{Path(user_dir).resolve()}']"]


def options(group: str, *folders: str | None) -> dict[str, Path]:
    """The YAML files of a group by name; of two with the same name the one that Hydra takes, in the earlier folder."""
    paths = [path for folder in folders[::-1] if folder for path in (Path(folder) / group).glob("*.yaml")]
    return dict(sorted({path.stem: path for path in paths}.items()))


def packaged_default(config_dir: str, choices: dict[str, Any]) -> Callable[[str], Any]:
    """Returns a function that looks a key up in the packaged configuration of these choices: a plain value or None."""

    @cache
    def content(path: Path) -> dict[str, Any]:
        found: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        chosen = [option for option in found.get("defaults", ()) if isinstance(option, dict)]
        return {group: option for options in chosen for group, option in options.items()} | found

    def default(key: str) -> Any:
        group, _, name = key.partition(".")
        for path in (Path(config_dir) / group / f"{choices.get(group)}.yaml", Path(config_dir) / "config.yaml"):
            value: Any = content(path)
            for part in (name if path.parent.name == group else key).split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
        if key == "counterparts":
            return list(DEFAULT_COUNTERPARTS)
        return SECTIONS[group].defaults().get(name) if group in SECTIONS else None

    return default


def composition_problems(
    config_dir: str, arguments: list[str], error: Exception, primary: str = "config", sound: Sequence[str] = ()
) -> list[str]:
    """A line for each override that fails by itself, then for what is wrong with the configuration of the others.

    If none fails by itself, a line for the error that was met.

    Args:
        primary: the YAML file that they are overrides of.
        sound: overrides that go with each of them, and are known to compose.
    """
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("--")]
    sweeping = bool({"-m", "--multirun"} & set(arguments))
    if sweeping:
        overrides = [single for override in overrides for single in _singles(override)]
    user = user_dir(arguments)
    chosen = [*search_path(user), *sound]  # of groups: on them depends which keys there are
    reasons, composing = {}, []
    for override in sorted(overrides, key=lambda override: not _is_choice(config_dir, override)):
        try:
            compose_file(config_dir, [*chosen, override], primary)
        except COMPOSE_ERRORS as fault:
            default = compose_file(config_dir, chosen, primary)
            reasons[override] = _reason(fault, options(_group(override), config_dir, user), override, default)
        else:
            composing.append(override)
            if _is_choice(config_dir, override) and not sweeping:
                chosen.append(override)
    problems = [f"{shown(override)}: {reasons[override]}" for override in overrides if override in reasons]
    if primary == "config" and not sweeping:  # of a sweep the values do not belong together
        problems = _problems_of(config_dir, [*search_path(user), *composing], problems)
    return problems or [_one_line(error)]


def _is_choice(config_dir: str, override: str) -> bool:
    return (Path(config_dir) / _group(override)).is_dir()


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _singles(override: str) -> list[str]:
    """The overrides of single jobs that an override of a sweep stands for."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return [override]
    if not parsed.is_discrete_sweep():
        return [override]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def _problems_of(config_dir: str, overrides: list[str], known: list[str]) -> list[str]:
    """What is known to be wrong, then what is with the values of overrides that compose."""
    try:
        return value_problems(config_dir, compose_file(config_dir, overrides, return_hydra_config=True), known)
    except COMPOSE_ERRORS:  # together they fail for a reason of which each is free
        return known


def value_problems(config_dir: str, cfg: DictConfig, known: Sequence[str] = ()) -> list[str]:
    """What is known to be wrong, then what is with the values of a configuration that has Hydra's own part too."""
    from qat_ste.app.validate import RunValidator

    choices, cfg = dict(cfg.hydra.runtime.choices), cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    try:
        RunValidator(cfg, packaged_default(config_dir, choices), known).components()
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return list(known)


def compose_file(
    config_dir: str, overrides: list[str], primary: str = "config", return_hydra_config: bool = False
) -> DictConfig:
    """The configuration of a primary YAML file.

    Raises:
        Exception: one of ``COMPOSE_ERRORS``.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base="1.3"):
        return compose(primary, overrides, return_hydra_config=return_hydra_config)


def _reason(error: Exception, choices: Collection[str], override: str, default: DictConfig) -> str:
    key, _, value = override.lstrip("+~").partition("=")
    text = f"{error} {error.__cause__ or ''}"
    if choices and not key.startswith("hydra/") and ("Could not find" in text or isinstance(error, ValueError)):
        meant = get_close_matches(value, choices, n=1, cutoff=0)[0]
        return f"no such {key}, allowed are {', '.join(choices)}; for example {key}={meant}"
    example = OmegaConf.select(default, key, throw_on_resolution_failure=False)
    kind = re.search(r"could not be converted to (\w+)", text)
    told = KINDS.get(kind[1]) if kind else None
    if told or "merging override" in text:
        usual = OmegaConf.to_container(example) if OmegaConf.is_config(example) else example
        return f"must be {told or _kind(usual)}; for example {key}={shown(usual)}"
    if "Could not override" in text:
        nearest = get_close_matches(key, list(_keys(OmegaConf.to_container(default))), n=1)
        hint = f"did you mean {nearest[0]}={shown(value)}?" if nearest else "--help shows all"
        return f"there is no such key; {hint}"
    return _one_line(error)


def _kind(usual: Any) -> str:
    if isinstance(usual, list):
        return "a list of text"
    return next((told for kind, told in _KINDS.items() if isinstance(usual, kind)), "text")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _keys(child, f"{prefix}{name}.")


def _one_line(error: Exception) -> str:
    return shown(" ".join(line for line in str(error).splitlines() if "object_type=" not in line), 500)


class RunStart(Callback):
    """Hydra calls it before it makes the run folder, of whose name values may lead nowhere, or writes there."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the command where a value cannot be looked at, ``paths`` are no paths, or the folder is in use."""
        cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        lost = unusable(cfg, packaged_default(config_dir(), dict(config.hydra.runtime.choices)))
        if lost or problems_in(cfg, "paths"):
            if not outer_rank():
                tell(value_problems(config_dir(), config))
            raise SystemExit(2)
        folder = Path(config.hydra.run.dir)
        if folder.is_dir() and not outer_rank():
            with locked_or_leave(folder, "hydra.run.dir"):
                pass

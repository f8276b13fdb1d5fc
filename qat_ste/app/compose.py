"""Finds and composes the YAML files; reports every problem of the overrides, one per line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
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
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from qat_ste.app.job import locked_or_leave, outer_rank, refuse
from qat_ste.app.schema import (
    MODEL_KEYS,
    AtlasRunConfig,
    ConfigError,
    RunConfig,
    TuneRunConfig,
    added_schema,
    problems_in,
    schema,
)
from qat_ste.app.value_checks import unusable
from qat_ste.base.files import home_path
from qat_ste.base.sections import DEFAULT_COUNTERPARTS, SECTIONS
from qat_ste.base.text import shown

ConfigStore.instance().store(name="schema", node=schema(RunConfig))
ConfigStore.instance().store(name="atlas_schema", node=added_schema(AtlasRunConfig))
ConfigStore.instance().store(name="tune_schema", node=added_schema(TuneRunConfig))

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # ValueError: an unknown option of a group
SEARCH_PATH = "hydra.searchpath="
EXTRAS = {"joblib": "joblib", "submitit": "slurm"}  # of this package, by the launcher that it installs
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
    return split_user_dir(arguments)[0]


def split_user_dir(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """``user_dir`` and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=os.path.expanduser)
    parsed, others = parser.parse_known_args(arguments)
    return parsed.config_dir, others


def add_modules_beside(user_dir: str) -> None:
    """Makes modules beside the user's folder of YAML files importable, in child processes too."""
    parent = str(Path(user_dir).resolve().parent)
    sys.path.append(parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), parent]))


def search_path(user_dir: str | None) -> list[str]:
    """The override that adds the user's folder to Hydra's search path, if there is a folder."""
    return [] if user_dir is None else [f"{SEARCH_PATH}['file://{Path(user_dir).resolve()}']"]


def with_model_keys(arguments: Sequence[str]) -> list[str]:
    """The arguments, those that set one of ``MODEL_KEYS`` with ++: Hydra then adds the key."""
    return [f"++{text}" if text.partition("=")[0] in MODEL_KEYS else text for text in arguments]


def without_plus(overrides: Sequence[str]) -> list[str]:
    """The overrides as they were before ``with_model_keys``."""
    return [text.removeprefix("++") if text[2:].partition("=")[0] in MODEL_KEYS else text for text in overrides]


def options(group: str, *folders: str | None) -> dict[str, Path]:
    """The YAML files of a group by name; as in Hydra, earlier folders take precedence."""
    paths = [path for folder in folders[::-1] if folder for path in (Path(folder) / group).glob("*.yaml")]
    return dict(sorted({path.stem: path for path in paths}.items()))


def packaged_default(config_dir: str, choices: dict[str, Any]) -> Callable[[str], Any]:
    """A function that returns the packaged value of a key under these choices, or None."""

    @cache
    def content(path: Path) -> dict[str, Any]:
        values: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        chosen = [option for option in values.get("defaults", ()) if isinstance(option, dict)]
        return {group: option for options in chosen for group, option in options.items()} | values

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
    config_dir: str, arguments: list[str], error: Exception, primary: str = "config", valid: Sequence[str] = ()
) -> list[str]:
    """A line for each override that fails alone, then one for each problem of the others; ``error`` if there is none.

    Args:
        primary: the YAML file that the arguments override.
        valid: overrides that compose, added to each of the arguments.
    """
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("--")]
    sweeping = bool({"-m", "--multirun"} & set(arguments))
    if sweeping:
        overrides = [single for override in overrides for single in _singles(override)]
    user = user_dir(arguments)
    chosen = [*search_path(user), *valid]  # options of groups, on which the existing keys depend
    reasons, composing = dict[str, str](), list[str]()
    for override in sorted(overrides, key=lambda override: not _is_choice(config_dir, override)):
        if any(override.startswith(f"{_group(choice)}.".replace("/", ".")) for choice in reasons):
            continue  # a key of an option that is not there
        try:
            compose_file(config_dir, [*chosen, override], primary)
        except COMPOSE_ERRORS as fault:
            default = compose_file(config_dir, chosen, primary)
            reasons[override] = _reason(fault, options(_group(override), config_dir, user), override, default)
        else:
            composing.append(override)
            options_of_group = [other for other in overrides if _group(other) == _group(override)]
            if _is_choice(config_dir, override) and len(options_of_group) == 1:
                chosen.append(override)
    problems = [f"{shown(override)}: {reasons[override]}" for override in overrides if override in reasons]
    if primary == "config" and not sweeping:  # a sweep's values belong to different runs
        with suppress(*COMPOSE_ERRORS):  # overrides may compose alone but not together
            cfg = compose_file(config_dir, [*search_path(user), *composing], return_hydra_config=True)
            problems = value_problems(config_dir, cfg, problems)
    return problems or [_one_line(error)]


def _is_choice(config_dir: str, override: str) -> bool:
    return (Path(config_dir) / _group(override)).is_dir()


def _group(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _singles(override: str) -> list[str]:
    """The overrides of the single jobs of a sweep's override."""
    with suppress(HydraException):
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_discrete_sweep():
            return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    return [override]


def value_problems(config_dir: str, cfg: DictConfig, problems: Sequence[str] = ()) -> list[str]:
    """``problems``, then those of the values of a configuration that includes Hydra's."""
    from qat_ste.app.validate import RunValidator

    choices, cfg = dict(cfg.hydra.runtime.choices), cfg.copy()
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    try:
        RunValidator(cfg, packaged_default(config_dir, choices), problems).components()
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return list(problems)


def compose_file(
    config_dir: str, overrides: list[str], primary: str = "config", return_hydra_config: bool = False
) -> DictConfig:
    """The configuration of a primary YAML file.

    Raises:
        Exception: one of ``COMPOSE_ERRORS``.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base="1.3"):
        return compose(primary, with_model_keys(overrides), return_hydra_config=return_hydra_config)


def _reason(error: Exception, choices: Collection[str], override: str, default: DictConfig) -> str:
    key, _, value = override.lstrip("+~").partition("=")
    text = f"{error} {error.__cause__ or ''}"
    if choices and not key.startswith("hydra/") and ("Could not find" in text or isinstance(error, ValueError)):
        meant = get_close_matches(value, choices, n=1, cutoff=0)[0]
        return f"no such {key}, allowed are {', '.join(choices)}; for example {key}={meant}"
    example = OmegaConf.select(default, key, throw_on_resolution_failure=False)
    match = re.search(r"could not be converted to (\w+)", text)
    kind = KINDS.get(match[1]) if match else None
    if kind or "merging override" in text:
        usual = OmegaConf.to_container(example) if OmegaConf.is_config(example) else example
        return f"must be {kind or _kind(usual)}; for example {key}={shown(usual)}"
    if "Could not override" in text:
        nearest = get_close_matches(key, [*_keys(OmegaConf.to_container(default)), *MODEL_KEYS], n=1)
        hint = f"did you mean {nearest[0]}={shown(value)}?" if nearest else "--help shows all"
        return f"there is no such key; {hint}"
    return _one_line(error)


def _kind(usual: Any) -> str:
    if isinstance(usual, list):
        return "a list of text"
    return next((name for kind, name in _KINDS.items() if isinstance(usual, kind)), "text")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield f"{prefix}{name}"
            yield from _keys(child, f"{prefix}{name}.")


def _one_line(error: Exception) -> str:
    if missing := re.search(r"Could not (?:load|find) '(hydra/\w+)/(\w+)'", f"{error} {error.__cause__ or ''}"):
        extra = EXTRAS.get(missing[2].partition("_")[0])
        remedy = f"pip install -e '.[{extra}]'" if extra else "no plugin of Hydra that is installed has it"
        return f"there is no {missing[1]}={missing[2]} here: {remedy}"
    return shown(" ".join(line for line in str(error).splitlines() if "object_type=" not in line), 500)


class RunStart(Callback):
    """Hydra's callback before it creates the run folder."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Expands ``~`` in the folder.

        Raises:
            SystemExit: a value is unusable, ``paths`` has a problem, or the folder is in use.
        """
        cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        default = packaged_default(config_dir(), dict(config.hydra.runtime.choices))
        if unusable(cfg, default) or problems_in(cfg, "paths"):
            refuse([] if outer_rank() else value_problems(config_dir(), config))
        folder = home_path(config.hydra.run.dir)
        with read_write(config.hydra):
            config.hydra.run.dir = str(folder)
        if folder.is_dir() and not outer_rank():
            with locked_or_leave(folder, "hydra.run.dir"):
                pass

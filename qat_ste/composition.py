"""Says in one line each why overrides do not compose; tries them one by one, so that no fault hides another."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException)


def composition_problems(config_dir: str, arguments: list[str], error: Exception) -> list[str]:
    """A line for each override that fails by itself; if none does, for the error that was met."""
    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("--")]
    sweep = {"-m", "--multirun"} & set(arguments)
    problems = []
    for override in overrides if not sweep else []:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(config_dir, version_base="1.3"):
                compose("config", [override])
        except COMPOSE_ERRORS as fault:
            problems.append(f"{override}: {_reason(fault, config_dir, override)}")
    return problems or [_one_line(error)]


def _reason(error: Exception, config_dir: str, override: str) -> str:
    key = override.partition("=")[0].lstrip("+~")
    choices = sorted(path.stem for path in (Path(config_dir) / key).glob("*.yaml"))
    if choices and "Could not find" in str(error):
        return f"no such {key}, allowed are {', '.join(choices)}; for example {key}={choices[0]}"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    text = str(error)
    if error.__cause__ is not None and "Error merging override" in text:
        text = str(error.__cause__)
    lines = [line.strip() for line in text.splitlines() if line.strip() and "object_type=" not in line]
    return " ".join(lines)

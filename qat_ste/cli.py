"""``qat-run``: composes the configuration with Hydra and calls the runner. Imports torch only to train."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.composition import composition_problems
from qat_ste.config import ConfigError, RunConfig


def config_dir() -> str:
    """Folder of the YAML files: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it")


def folder_name(overrides: str) -> str:
    """Overrides as part of a folder's name: nothing that a shell or a file system minds, and not too long."""
    name = re.sub(r"[^\w.,=+-]+", "-", overrides).strip("-")
    return name[:120].rstrip("-,") or "default"


ConfigStore.instance().store(name="schema", node=RunConfig)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")
def _job(cfg: DictConfig) -> None:
    from qat_ste.loggers.files import write_json
    from qat_ste.preparation import Preparation, packaged_default
    from qat_ste.runner import run

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        if (folder / "results.json").exists():
            raise ConfigError([f"hydra.run.dir={folder}: holds a finished run; choose another folder"])
        parts = Preparation(cfg, packaged_default(config_dir(), dict(hydra_config.runtime.choices))).parts()
    except ConfigError as error:
        if not (folder / "status.json").exists():
            status = {"status": "failed", "step": 0, "wall_seconds": 0.0, "error": str(error)}
            write_json(folder / "status.json", status)
        _tell([str(problem) for problem in error.problems])
        if hydra_config.mode is RunMode.MULTIRUN:  # the other jobs go on
            raise
        raise SystemExit(2) from None
    exit_code = run(cfg, parts, folder, shlex.join(["qat-run", *hydra_config.overrides.task]))
    if exit_code == 1 and hydra_config.mode is RunMode.MULTIRUN:
        raise RuntimeError(f"the run failed; {folder / 'run.log'} says why")
    if exit_code:
        raise SystemExit(exit_code)


def main() -> None:
    """Entry point. Bad input: one line a problem and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks of its own and exits with 1
    try:
        _job()
    except (HydraException, OmegaConfBaseException) as error:
        _tell(composition_problems(config_dir(), sys.argv[1:], error))
        raise SystemExit(2) from None


def _tell(problems: list[str]) -> None:
    for problem in problems:
        print(f"qat-run: {problem}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()

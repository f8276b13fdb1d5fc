"""``qat-run``: composes the configuration with Hydra and calls the runner. Imports torch only to train."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat_ste.composition import composition_problems
from qat_ste.config import RunConfig


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
    from qat_ste.launch import TOLD_IN_ONE_LINE, join, launch
    from qat_ste.loggers.files import write_json
    from qat_ste.preparation import Preparation, packaged_default
    from qat_ste.ranks import Ranks
    from qat_ste.runner import finished, run

    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    choices = {
        group: choice for group, choice in hydra_config.runtime.choices.items() if not group.startswith("hydra/")
    }
    origin = {"command": shlex.join(["qat-run", *hydra_config.overrides.task]), "choices": choices}
    rank = _outer_rank()
    try:
        preparation = Preparation(cfg, packaged_default(config_dir(), choices))
        if rank is not None:
            parts = preparation.parts()
            join(parts.device)
            folder = Ranks().broadcast(folder)  # each evaluated the time for itself
        if finished(folder, cfg):
            if not rank:
                print(f"finished already: {folder / 'report.html'}")  # noqa: T201
            return
        if rank is None:
            parts = preparation.parts()
        if rank is None and cfg.runtime.devices > 1:
            parts.dataset.prepare()
            job_logging: Any = OmegaConf.to_container(hydra_config.job_logging, resolve=True)
            exit_code = launch(cfg, folder, origin, job_logging)
        else:
            exit_code = run(cfg, parts, folder, origin)
    except TOLD_IN_ONE_LINE as error:
        if not rank and not (folder / "status.json").exists():
            status = {"status": "failed", "step": 0, "wall_seconds": 0.0, "error": str(error)}
            write_json(folder / "status.json", status)
        _tell(str(error).splitlines())
        if hydra_config.mode is RunMode.MULTIRUN:  # the other jobs go on
            raise
        raise SystemExit(2) from None
    if exit_code == 1 and hydra_config.mode is RunMode.MULTIRUN:
        raise RuntimeError(f"the run failed; {folder / 'run.log'} says why")
    if exit_code:
        raise SystemExit(exit_code)


def _outer_rank() -> int | None:
    """This process's rank where torchrun or srun started several of them, else None; sets what torch looks for.

    A batch script's own process has SLURM's task variables too, but not those of a step.
    """
    env = os.environ
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in env:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", env["SLURM_STEP_NODELIST"]], capture_output=True, text=True, check=True
        )
        env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"] = (
            env[name] for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
        )
        env["LOCAL_WORLD_SIZE"] = env["SLURM_STEP_TASKS_PER_NODE"].partition("(")[0].partition(",")[0]
        env.setdefault("MASTER_ADDR", hosts.stdout.split()[0])
        env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000))
    return int(env["RANK"]) if int(env.get("WORLD_SIZE", 1)) > 1 else None


def main() -> None:
    """Entry point. Bad input: one line a problem and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints tracebacks of its own and exits with 1
    if _outer_rank():  # rank 0 keeps the run folder
        sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
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

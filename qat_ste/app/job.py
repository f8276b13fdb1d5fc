"""What the command does in one run folder: nothing if the run is there already, else it is prepared and trained."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qat_ste.base.files import FolderInUse, locked, write_json
from qat_ste.base.run_config import CheckpointMismatch, finished
from qat_ste.base.text import of_error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run, its folder, and what ``results.json`` says of where it came from.

    Args:
        default: the packaged value of a key ("estimator.k"), for the example in a message.
        job_logging: configuration of Python's logging in processes that this one starts.
    """

    cfg: DictConfig
    folder: Path
    origin: dict[str, Any]
    default: Callable[[str], Any]
    job_logging: dict[str, Any]

    def finished(self, folder: Path | None = None) -> bool:
        """Whether its folder, or this one, holds the run, done; looked up without torch.

        Raises:
            CheckpointMismatch: it holds a finished run of another configuration.
        """
        config: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return finished(folder or self.folder, config)

    def run(self) -> int:
        """Runs it, or goes on with it; returns the exit code.

        Raises:
            Exception: of ``TOLD_IN_ONE_LINE`` for whatever is wrong with the input.
        """
        rank = outer_rank()
        if rank is None and self.finished():
            return self._say_finished(self.folder)
        from qat_ste.app.ranks import join, launch
        from qat_ste.app.run import run
        from qat_ste.app.validate import RunValidator
        from qat_ste.experiment.ranks import Ranks

        components, folder = RunValidator(self.cfg, self.default).components(), self.folder
        if rank is not None:
            join(components.device)
            folder = Ranks().broadcast(folder)  # each evaluated the time for itself
            if self.finished(folder):
                return 0 if rank else self._say_finished(folder)
        elif self.cfg.runtime.devices > 1:
            components.dataset.prepare()
            return launch(self.cfg, folder, self.origin, self.job_logging)
        return run(self.cfg, components, folder, self.origin)

    def describe(self) -> str:
        """The command that makes this run, and what it costs, found out without training."""
        from qat_ste.app.validate import RunValidator

        components = RunValidator(self.cfg, self.default).components()
        overrides = [o for o in shlex.split(self.origin["command"]) if not o.startswith("dry_run=")]
        if self.cfg.logger.get("group"):
            overrides.append(quoted("logger.group", str(self.cfg.logger.group)))
        command = shlex.join([*overrides, quoted("hydra.run.dir", str(self.folder))])
        training = components.training
        return f"{command}  # {components.members} members x {training.steps} steps of {training.batch_size}"

    @staticmethod
    def _say_finished(folder: Path) -> int:
        print(f"finished already: {folder / 'report.html'}")  # noqa: T201
        return 0


def quoted(key: str, value: str) -> str:
    """An override whose value Hydra takes as it stands, commas and all."""
    # A backslash stands for itself, but before a quote.
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), value)
    return f'{key}="{escaped}"'


def tell(problems: list[str], program: str = "qat-run") -> None:
    """A line each on standard error."""
    for problem in problems:
        print(f"{program}: {problem}", file=sys.stderr)  # noqa: T201


@contextmanager
def locked_or_leave(folder: Path, key: str) -> Iterator[None]:
    """``locked``, for Hydra's callbacks, of whose exceptions it makes warnings: all but SystemExit."""
    try:
        with locked(folder, key):
            yield
    except FolderInUse as error:
        tell([str(error)])
        raise SystemExit(2) from None


def tell_fault(error: Exception, folder: Path | None) -> int:
    """Tells why a run did not get to its end, also in the status of a run folder that has none; returns the exit code.

    Bad input: a line each, 2. Anything else: one line, its traceback in ``run.log``, 1.
    """
    from qat_ste.app.ranks import TOLD_IN_ONE_LINE

    bad_input = isinstance(error, TOLD_IN_ONE_LINE)
    lines = str(error).splitlines() if bad_input else [f"the run failed: {of_error(error)}"]
    lines = error.lines("hydra.run.dir") if isinstance(error, CheckpointMismatch) else lines
    if outer_rank() and bad_input:  # rank 0 tells it
        return 2
    with suppress(OSError):
        if folder and not isinstance(error, FolderInUse) and not (folder / "status.json").exists():
            status = {"status": "failed", "step": 0, "wall_seconds": 0.0, "error": "\n".join(lines)}
            write_json(folder / "status.json", status)
    log.info("; ".join(lines), exc_info=None if bad_input else error)
    tell(lines)
    return 2 if bad_input else 1


def outer_rank() -> int | None:
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

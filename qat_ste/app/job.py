"""One run of ``qat-run`` in its folder: skips a finished run, otherwise checks and trains it."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from qat_ste.base.errors import Number
from qat_ste.base.files import FolderInUse, locked, write_json
from qat_ste.base.run_config import CheckpointMismatch, finished
from qat_ste.base.text import of_error, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run, its folder, and its origin (command and choices) for ``results.json``.

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
        """Whether ``folder`` (by default the job's) holds the finished run. Does not import torch.

        Raises:
            CheckpointMismatch: the folder holds a finished run of another configuration.
        """
        config: Any = OmegaConf.to_container(self.cfg, resolve=True)
        return finished(folder or self.folder, config)

    def run(self) -> int:
        """Starts or resumes the run; returns the exit code.

        Raises:
            Exception: one of ``INPUT_ERRORS`` for bad input.
        """
        rank = outer_rank()
        if rank is None and self.finished():
            return self._say_finished(self.folder)
        from qat_ste.app.ranks import join, launch
        from qat_ste.app.run import run
        from qat_ste.app.validate import RunValidator
        from qat_ste.experiment.ranks import Ranks

        logging.disable(logging.WARNING if rank else logging.NOTSET)  # rank 0 warns
        components, folder = RunValidator(self.cfg, self.default).components(), self.folder
        logging.disable(logging.NOTSET)
        if rank is not None:
            join(components.device)
            folder = Ranks().broadcast(folder)  # its name holds the time, which differs by rank
            if self.finished(folder):
                return 0 if rank else self._say_finished(folder)
        elif self.cfg.runtime.devices > 1:
            components.dataset.prepare()
            return launch(self.cfg, folder, self.origin, self.job_logging)
        return run(self.cfg, components, folder, self.origin)

    def describe(self) -> str:
        """The command of this run and its cost; trains nothing."""
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
        page = folder / "report.html"
        shown = page if page.is_file() else f"{folder}; its page: qat-report {shlex.quote(str(folder))}"
        print(f"finished already: {shown}")  # noqa: T201
        return 0


def quoted(key: str, value: str) -> str:
    """An override with its value in quotes, so that Hydra takes it literally."""
    # Hydra reads a backslash literally unless a quote follows.
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), value)
    return f'{key}="{escaped}"'


def tell(problems: list[str], program: str = "qat-run") -> None:
    """Prints problems on standard error, one per line."""
    for problem in problems:
        print(f"{program}: {problem}", file=sys.stderr)  # noqa: T201


def refuse(problems: list[str], program: str = "qat-run") -> NoReturn:
    """Prints problems on standard error, one per line, and exits with code 2."""
    tell(problems, program)
    raise SystemExit(2)


@contextmanager
def locked_or_leave(folder: Path, key: str) -> Iterator[None]:
    """``locked`` for callbacks: exits with code 2, since Hydra turns exceptions except SystemExit into warnings."""
    try:
        with locked(folder, key):
            yield
    except FolderInUse as error:
        refuse([str(error)])


def tell_fault(error: Exception, folder: Path | None) -> int:
    """Prints why a run failed and, if the run folder has no status, writes one; returns the exit code.

    Bad input: one line per problem and 2. Other errors: one line, the traceback in ``run.log``, and 1.
    """
    from qat_ste.app.ranks import INPUT_ERRORS

    bad_input = isinstance(error, INPUT_ERRORS)
    lines = str(error).splitlines() if bad_input else [f"the run failed: {of_error(error)}"]
    lines = error.lines("hydra.run.dir") if isinstance(error, CheckpointMismatch) else lines
    if outer_rank() and bad_input:  # rank 0 prints it
        return 2
    with suppress(OSError):
        if folder and not isinstance(error, FolderInUse) and not (folder / "status.json").exists():
            status = {"status": "failed", "step": 0, "wall_seconds": 0.0, "error": "\n".join(lines)}
            write_json(folder / "status.json", status)
    log.info("; ".join(lines), exc_info=None if bad_input else error)
    tell(lines)
    return 2 if bad_input else 1


def outer_rank() -> int | None:
    """This process's rank if torchrun or srun started several, else None; sets the variables that torch reads.

    Raises:
        SystemExit: one of these variables is missing or has an impossible value.
    """
    env = os.environ
    # The step's variables, since a batch script has the task's too.
    if env.get("SLURM_STEP_NUM_TASKS") not in (None, "", "1") and not env.get("RANK"):
        _take_from_slurm(env)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if env.get(name):
            _number(env, name)
    if not env.get("RANK") and env.get("WORLD_SIZE") in (None, "", "1"):
        return None
    size = _number(env, "WORLD_SIZE", 1)
    rank = _number(env, "RANK", 0, size - 1)
    if size == 1:
        return None
    _number(env, "MASTER_PORT", 1, 65_535)
    if not env.get("MASTER_ADDR"):
        _refuse_variable("MASTER_ADDR", "the host of rank 0", "")
    return rank


def _take_from_slurm(env: MutableMapping[str, str]) -> None:
    size = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    rank, local_rank = _number(env, "SLURM_PROCID", 0, size - 1), _number(env, "SLURM_LOCALID", 0, size - 1)
    if not env.get("MASTER_PORT"):
        env["MASTER_PORT"] = str(20_000 + _number(env, "SLURM_JOB_ID") % 20_000)
    if not env.get("MASTER_ADDR"):
        command = ["scontrol", "show", "hostnames", env.get("SLURM_STEP_NODELIST", "")]
        try:
            env["MASTER_ADDR"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError, IndexError):
            _refuse_variable("MASTER_ADDR", "the host of rank 0, since scontrol cannot name it here", "")
    if local_size := re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        env["LOCAL_WORLD_SIZE"] = local_size[0]
    env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"] = str(rank), str(local_rank), str(size)


def _number(env: Mapping[str, str], name: str, lowest: int = 0, highest: float = math.inf) -> int:
    text = env.get(name, "")
    if not re.fullmatch("[0-9]{1,10}", text) or not lowest <= int(text) <= highest:
        _refuse_variable(name, Number(lowest, highest), text)
    return int(text)


def _refuse_variable(name: str, allowed: object, text: str) -> NoReturn:
    value = f"{name}={one_line(text, 200)}" if text else f"{name} is not set"
    refuse([f"{value}: it must be {allowed}. torchrun and srun set it; for one process, unset RANK and WORLD_SIZE"])

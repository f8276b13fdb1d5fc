"""Several ranks for one run, started inside the job."""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig, OmegaConf
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from qat_ste.app.run import StopRequest, run
from qat_ste.app.schema import ConfigError
from qat_ste.app.validate import RunValidator
from qat_ste.base.files import FolderInUse, read_json, write_json
from qat_ste.base.process import when_parent_ends
from qat_ste.base.run_config import CheckpointMismatch
from qat_ste.data.image_files import BrokenImageError
from qat_ste.experiment.ranks import Ranks

log = logging.getLogger(__name__)
GRACE_SECONDS = 5.0  # for ranks whose peer is gone: to end by themselves, then by SIGTERM; after that they are killed
TOLD_IN_ONE_LINE = (ConfigError, CheckpointMismatch, BrokenImageError, FolderInUse)


def join(device: torch.device, init_method: str = "env://", rank: int = -1, size: int = -1) -> None:
    """Makes this process one of several ranks. Control messages go through gloo, what lies on a GPU through NCCL."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method, rank=rank, world_size=size)


def launch(cfg: DictConfig, folder: Path, origin: dict[str, Any], job_logging: dict[str, Any]) -> int:
    """Starts ``runtime.devices`` ranks on this machine, each of which calls ``run``; returns the exit code.

    Raises:
        ConfigError: what a rank had to tell in one line.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = mp.get_context("spawn")
    told: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as meeting:
        plain = OmegaConf.to_container(cfg, resolve=True)
        arguments = (cfg.runtime.devices, f"file://{meeting}/ranks", plain, folder, origin, job_logging, told)
        processes = start_processes(_rank, arguments, nprocs=cfg.runtime.devices, join=False, start_method="spawn")
        with StopRequest([process.pid for process in processes.processes]):
            try:
                while not processes.join(timeout=1.0, grace_period=GRACE_SECONDS):
                    pass
            except (ProcessExitedException, ProcessRaisedException):
                pass  # what happened is found below
            else:
                return 0
    faults = []
    while not told.empty():
        bad_input, text = told.get()
        if bad_input:
            raise ConfigError([text])
        faults.append(text.strip())
    codes = [process.exitcode for process in processes.processes]
    # When one rank ends the others are terminated; their connections break before that.
    killed = [
        f"rank {rank} was killed by {signal.Signals(-code).name}"
        for rank, code in enumerate(codes)
        if code < 0 and code != -signal.SIGTERM
    ]
    if not (killed or faults):
        return max(codes) if max(codes) >= 0 else 128 + signal.SIGTERM
    why = (killed or faults)[0].splitlines()[-1]
    log.info("\n".join(faults))
    log.error("the run failed: %s", why)
    _tell_status(folder / "status.json", why)
    return 1


def _tell_status(path: Path, error: str) -> None:
    """Why the run failed, in place of what rank 0 had seen of it."""
    with suppress(OSError, ValueError):
        write_json(path, read_json(path) | {"status": "failed", "error": error})


def _rank(
    rank: int,
    size: int,
    init_method: str,
    plain: dict[str, Any],
    folder: Path,
    origin: dict[str, Any],
    job_logging: dict[str, Any],
    told: Any,
) -> None:
    os.setsid()  # a Ctrl-C reaches the launching process alone, which passes it on
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))  # torch sends SIGINT, which may be ignored
    os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(rank), str(size)
    if rank == 0:
        logging.config.dictConfig(job_logging)
    try:
        cfg = OmegaConf.create(plain)
        components = RunValidator(cfg).components()
        join(components.device, init_method, rank, size)
        code = run(cfg, components, folder, origin)
        if code != 2:  # all ranks come to the same end: they leave together
            Ranks().any([True])
        dist.destroy_process_group()
    except TOLD_IN_ONE_LINE as error:
        told.put((True, str(error)))
        code = 2
    except Exception:
        told.put((False, traceback.format_exc()[-10_000:]))
        code = 1
    sys.exit(code)

"""Starts several ranks for one run, in processes of this machine."""

from __future__ import annotations

import atexit
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
GRACE_SECONDS = 5.0  # after a rank has ended, the others get this long to exit, then again after SIGTERM
INPUT_ERRORS = (ConfigError, CheckpointMismatch, BrokenImageError, FolderInUse)


def join(device: torch.device, init_method: str = "env://", rank: int = -1, size: int = -1) -> None:
    """Makes this process one of several ranks: gloo for tensors on the CPU, NCCL for those on a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method, rank=rank, world_size=size)
    if device.type == "cpu":
        atexit.register(_leave)


def _leave() -> None:
    """Ends gloo's threads, which would now and then abort a process that ends with them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch(cfg: DictConfig, folder: Path, origin: dict[str, Any], job_logging: dict[str, Any]) -> int:
    """Starts ``runtime.devices`` ranks on this machine, each calling ``run``; returns the exit code.

    Raises:
        ConfigError: a rank met bad input.
    """
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = mp.get_context("spawn")
    errors: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as meeting:
        plain = OmegaConf.to_container(cfg, resolve=True)
        arguments = (cfg.runtime.devices, f"file://{meeting}/ranks", plain, folder, origin, job_logging, errors)
        processes = start_processes(_rank, arguments, nprocs=cfg.runtime.devices, join=False, start_method="spawn")
        with StopRequest([process.pid for process in processes.processes]):
            try:
                while not processes.join(timeout=1.0, grace_period=GRACE_SECONDS):
                    pass
            except (ProcessExitedException, ProcessRaisedException):
                pass  # the causes are read below
            else:
                return 0
    faults = []
    while not errors.empty():
        bad_input, text = errors.get()
        if bad_input:
            raise ConfigError([text])
        faults.append(text.strip())
    codes = [process.exitcode for process in processes.processes]
    # When one rank ends, the others fail with broken connections or are terminated: a kill is the cause.
    killed = [
        f"rank {rank} was killed by {signal.Signals(-code).name}"
        for rank, code in enumerate(codes)
        if code < 0 and code != -signal.SIGTERM
    ]
    if not (killed or faults):
        return max(codes) if max(codes) >= 0 else 128 + signal.SIGTERM
    cause = (killed or faults)[0].splitlines()[-1]
    log.info("\n".join(faults))
    log.error("the run failed: %s", cause)
    status = folder / "status.json"
    with suppress(OSError, ValueError):  # rank 0 may have written another error
        write_json(status, read_json(status) | {"status": "failed", "error": cause})
    return 1


def _rank(
    rank: int,
    size: int,
    init_method: str,
    plain: dict[str, Any],
    folder: Path,
    origin: dict[str, Any],
    job_logging: dict[str, Any],
    errors: Any,
) -> None:
    os.setsid()  # only the launching process receives Ctrl-C; it passes the signal on
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))  # torch sends SIGINT, which may be ignored
    os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"] = str(rank), str(size)
    if rank == 0:
        logging.config.dictConfig(job_logging)
    try:
        cfg = OmegaConf.create(plain)
        logging.disable(logging.WARNING)  # the launching process has warned
        components = RunValidator(cfg).components()
        logging.disable(logging.NOTSET)
        join(components.device, init_method, rank, size)
        code = run(cfg, components, folder, origin)
        if code != 2:  # all ranks have the same exit code: wait for each other
            Ranks().any([True])
        dist.destroy_process_group()
    except INPUT_ERRORS as error:
        errors.put((True, str(error)))
        code = 2
    except Exception:
        errors.put((False, traceback.format_exc()[-10_000:]))
        code = 1
    sys.exit(code)

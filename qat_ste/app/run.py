"""One run: builds what the configuration names, compares, and leaves a run folder."""

from __future__ import annotations

import io
import logging
import os
import platform
import signal
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qat_ste.app.validate import Parts, levels_of, update_of
from qat_ste.base.files import locked, write
from qat_ste.base.process import keep_freed_memory
from qat_ste.base.run_config import identity
from qat_ste.base.text import of_error
from qat_ste.data.image_files import BrokenImageError
from qat_ste.divergence import metric_titles
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.comparison import Comparison, compare
from qat_ste.experiment.execution import Execution
from qat_ste.experiment.lockstep import Row, Stopped
from qat_ste.experiment.ranks import Ranks
from qat_ste.loggers import Logger
from qat_ste.loggers.files import RunFolder
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.optimizers import Equivalence
from qat_ste.optimizers.schedules import by_name

log = logging.getLogger(__name__)
PACKAGES = ("qat-ste", "torch", "torchvision", "hydra-core", "omegaconf", "wandb", "numpy", "scikit-learn")


class StopRequest:
    """Notes signals that ask for an end, so that training ends at the next step; those that are ignored stay so.

    Args:
        processes: ids of processes that are told too.
    """

    def __init__(self, processes: Sequence[int] = ()) -> None:
        self.signal: int | None = None
        self._processes = processes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(process, number)
        if self.signal == signal.SIGINT == number:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """As a shell has it; of a rank that was stopped by what another one was told, SIGTERM's."""
        return 128 + (self.signal or signal.SIGTERM)


def run(cfg: DictConfig, parts: Parts, folder: Path, origin: dict[str, Any]) -> int:
    """Runs one comparison in ``folder``, or goes on with the one that was cut off there; returns the exit code.

    Where several ranks train, each has to call this; rank 0 does all the telling. ``origin`` goes into ``results.json``
    as it is: ``command`` and ``choices``, the option of each group.

    Raises:
        FolderInUse: another process is running there.
        CheckpointMismatch: what was cut off there had another configuration.
        BrokenImageError: on a rank other than 0.
        Exception: whatever else ended the run; what is on the disk by then stays.
    """
    ranks = Ranks()
    _set_up_torch(cfg, ranks)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    what = identity(config) | {"data": parts.dataset.fingerprint, "ranks": ranks.size}
    with StopRequest() as stop, nullcontext() if ranks.rank else locked(folder, "hydra.run.dir"):
        checkpoints = Checkpoints(folder, what, **config["checkpoint"])
        if ranks.rank:
            return _take_part(cfg, parts, checkpoints, stop)
        files = RunFolder(folder, checkpoints.rows)
        terminal = TerminalLogger(parts.steps, cfg.runtime.line_seconds)
        loggers: list[Logger] = [terminal, files]  # what cannot be written has been shown
        exit_code = 1
        terminal.say(f"run folder: {folder}")
        _say_what_is_special(terminal, cfg, parts, ranks, checkpoints)
        try:
            if cfg.logger.get("_target_"):
                loggers.append(instantiate(cfg.logger)(folder=folder, name=folder.name, config=config))
            comparison, skipped = _compare(cfg, parts, loggers, stop, checkpoints)
            results = origin | _results(config, comparison, files.wall_seconds, parts.device, skipped)
            for logger in loggers:
                logger.log_results(results)
            _report(folder, comparison)
            files.set_status("done")
            exit_code = 0
        except Stopped as stopped:
            name = signal.Signals(stop.exit_code - 128).name
            terminal.say(f"{name}: {stopped}; the same command with hydra.run.dir={folder} goes on from there")
            files.step = stopped.step
            files.set_last_status("preempted", f"{name}: {stopped}")
            exit_code = stop.exit_code
        except (FloatingPointError, BrokenImageError) as error:
            log.error("%s", error)
            files.set_last_status("failed", str(error))
            exit_code = 2 if isinstance(error, BrokenImageError) else 1
        except BaseException as error:
            files.set_last_status("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for logger in reversed(loggers):
                logger.close(exit_code)
        if exit_code == 0:
            terminal.say(str((folder / "report.html").resolve()))
        return exit_code


def _take_part(cfg: DictConfig, parts: Parts, checkpoints: Checkpoints, stop: StopRequest) -> int:
    try:
        _compare(cfg, parts, [], stop, checkpoints)
    except Stopped:
        return stop.exit_code
    except FloatingPointError:  # on all ranks alike
        return 1
    return 0


def _set_up_torch(cfg: DictConfig, ranks: Ranks) -> None:
    keep_freed_memory()
    # TF32 rounds to 10 bits, which would drown what is measured.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = cfg.runtime.tf32
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    if cfg.runtime.threads or given or ranks.size > 1:
        here = cfg.runtime.devices if cfg.runtime.devices > 1 else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = int(given or os.cpu_count() or 1)
        torch.set_num_threads(cfg.runtime.threads or max(1, cores // here))


def _say_what_is_special(
    terminal: TerminalLogger, cfg: DictConfig, parts: Parts, ranks: Ranks, checkpoints: Checkpoints
) -> None:
    if checkpoints.step:
        terminal.say(f"goes on after step {checkpoints.step}")
    adjustment = parts.adjustment
    if adjustment.tested or adjustment.equivalence is Equivalence.NONE:
        found = "by testing" if adjustment.tested else "no adjustment is known"
        what = f"{cfg.estimator._target_} with {cfg.optimizer._target_}"
        terminal.say(f"{what}: {adjustment.equivalence}, {found}: {adjustment}")
    if ranks.size > 1:
        terminal.say(f"{ranks.size} ranks, members {cfg.runtime.placement}")
    if parts.device.type == "cuda":
        terminal.say(f"{torch.cuda.get_device_name(parts.device)}, TF32 {'on' if cfg.runtime.tf32 else 'off'}")
    if cfg.runtime.precision != "fp32" or cfg.runtime.tf32:
        terminal.say(
            "rounding in less than float32 may drown what is measured: hold the jitter and replica rows beside it"
        )


def _compare(
    cfg: DictConfig, parts: Parts, loggers: list[Logger], stop: StopRequest, checkpoints: Checkpoints
) -> tuple[Comparison, list[str]]:
    """The comparison, and which images were left out by any rank."""

    def on_row(row: Row) -> None:
        for logger in loggers:
            logger.log_row(row)

    train, runtime, ranks, dataset = cfg.train, cfg.runtime, Ranks(), parts.dataset
    update = update_of(cfg)
    dataset.prepare()
    comparison = compare(
        parts.build_model,
        lambda shard: dataset.train_batches(train.batch_size, train.shuffle, train.seed, parts.device, shard),
        loss=F.cross_entropy,
        bits=cfg.quantizer.bits,
        levels=levels_of(cfg),
        estimator=parts.estimator,
        optimizer=parts.optimizer,
        lr=cfg.optimizer.lr * train.lr_scale,
        steps=parts.steps,
        validation=lambda shard: dataset.test_batches(parts.device, shard),
        steps_per_epoch=parts.steps_per_epoch,
        schedule=by_name(train.schedule, parts.steps, train.warmup),
        counterparts=list(cfg.counterparts),
        include=list(cfg.quantizer.include),
        exclude=list(cfg.quantizer.exclude),
        biases=cfg.quantizer.biases,
        saturation=cfg.quantizer.saturation,
        clipping=update.clipping,
        l2=update.l2,
        weight_decay=update.weight_decay,
        sequence_weights=cfg.metrics.sequence_weights,
        log_every=cfg.metrics.every,
        seed=train.seed,
        device=parts.device,
        on_row=on_row,
        stop=lambda: bool(stop),
        execution=Execution(runtime.precision, train.accumulate, runtime.execution, runtime.sync_batchnorm),
        placement=runtime.placement,
        checkpoints=checkpoints,
    )
    skipped = {path for of_rank in ranks.gather(list(dataset.skipped)) or [] for path in of_rank}
    return comparison, sorted(skipped)


def _results(
    config: dict[str, Any], comparison: Comparison, wall_seconds: float, device: torch.device, skipped: list[str]
) -> dict[str, Any]:
    """The content of ``results.json``."""
    return {
        "schema": 1,
        "config": config,
        "versions": versions(),
        "cpu_count": os.cpu_count(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "steps": comparison.steps,
        "wall_seconds": wall_seconds,
        "quantized_weights": comparison.quantized_weights,
        "sequence_weights": comparison.sequence_weights,
        "skipped_images": len(skipped),
        "lr_factor": comparison.lr_factor,
        "equivalence": comparison.equivalence,
        "equivalence_reason": comparison.equivalence_reason,
        "reference": vars(comparison.reference),
        "counterparts": {name: vars(numbers) for name, numbers in comparison.counterparts.items()},
        "verdict": vars(comparison.verdict),
        "metrics": metric_titles(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages on which numbers may depend."""
    return {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _report(folder: Path, comparison: Comparison) -> None:
    try:
        from qat_ste.report.run.page import write_report

        weights = io.BytesIO()
        np.savez(weights, **comparison.weights)  # type: ignore[arg-type]
        write(folder / "weights.npz", weights.getvalue())
        for figure, reason in write_report(folder).items():
            log.warning("figure %s could not be drawn: %s", figure, reason)
    except Exception as error:  # a full disk or a missing font must not cost a run its numbers
        log.warning("the report could not be written: %s", of_error(error))

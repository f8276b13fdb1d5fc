"""Runs the comparison of a configuration and writes the run folder."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qat_ste.app.job import quoted
from qat_ste.app.schema import ConfigError, parameters
from qat_ste.app.start import start_of_run
from qat_ste.app.validate import RunComponents
from qat_ste.base.errors import ArgumentError
from qat_ste.base.files import locked
from qat_ste.base.process import keep_freed_memory
from qat_ste.base.run_config import identity
from qat_ste.base.sections import SECTIONS
from qat_ste.data.dataset import Shard, TrainingBatches
from qat_ste.data.image_files import BrokenImageError
from qat_ste.data.task import task_of
from qat_ste.experiment.checkpoint import Checkpoints
from qat_ste.experiment.comparison import Comparison, compare
from qat_ste.experiment.execution import allow_tf32
from qat_ste.experiment.lockstep import Row, Stopped
from qat_ste.experiment.ranks import Ranks
from qat_ste.experiment.run_report import results_of, write_page
from qat_ste.experiment.start import Start
from qat_ste.loggers import Logger
from qat_ste.loggers.files import RunFolder
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.optimizers import Equivalence

log = logging.getLogger(__name__)


class StopRequest:
    """Notes signals that request a stop, so that training ends at the next step; ignored signals stay ignored.

    Args:
        processes: ids of processes to pass the signal to.
    """

    def __init__(self, processes: Sequence[int] = ()) -> None:
        self.signal: int | None = None
        self._processes = processes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                if (
                    signal.getsignal(number) is not signal.SIG_IGN
                ):  # ignored under nohup and in background jobs of a shell
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):  # it has exited
                os.kill(process, number)
        if self.signal == signal.SIGINT == number:  # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as in a shell; SIGTERM where another rank received the signal."""
        return 128 + (self.signal or signal.SIGTERM)


def run(cfg: DictConfig, components: RunComponents, folder: Path, origin: dict[str, Any]) -> int:
    """Runs one comparison in ``folder``, or resumes the interrupted one there; returns the exit code.

    With several ranks, each calls this; rank 0 writes and prints. ``origin`` goes into ``results.json``: ``command``,
    and ``choices``, the option of each group.

    Raises:
        FolderInUse: another process is running there.
        CheckpointMismatch: the interrupted run had another configuration.
        BrokenImageError: on a rank other than 0.
        Exception: any other error that ended the run; written files stay.
    """
    ranks = Ranks()
    _set_up_torch(cfg, ranks)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    run_identity = identity(config) | {"data": components.dataset.fingerprint, "ranks": ranks.size} | components.files
    with StopRequest() as stop, nullcontext() if ranks.rank else locked(folder, "hydra.run.dir"):
        checkpoints = Checkpoints(folder, run_identity, parameters(cfg, "checkpoint"))
        if ranks.rank:
            return _take_part(cfg, components, checkpoints, stop)
        files = RunFolder(folder, checkpoints.rows)
        terminal = TerminalLogger(components.training.steps, cfg.runtime.line_seconds)
        loggers: list[Logger] = [terminal, files]  # first, so that a row is shown even if writing fails
        exit_code = 1
        terminal.say(f"run folder: {folder}")
        _say_special_settings(terminal, cfg, components, ranks, checkpoints)
        try:
            if cfg.logger.get("_target_"):
                logged = config | {"choices": origin["choices"]}
                loggers.append(instantiate(cfg.logger)(folder=folder, name=folder.name, config=logged))
            comparison, skipped = _compare(cfg, components, loggers, stop, checkpoints)
            device = components.device
            results = origin | results_of(comparison)
            results |= {
                "config": config,
                "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
                "wall_seconds": files.wall_seconds,
                "skipped_images": skipped,
            }
            for logger in loggers:
                logger.log_results(results)
            problem = write_page(comparison, folder)
            files.set_status("done", problem)
            exit_code = 1 if problem else 0
        except Stopped as stopped:
            name = signal.Signals(stop.exit_code - 128).name
            resume = shlex.quote(quoted("hydra.run.dir", str(folder)))
            terminal.say(f"{name}: {stopped}; the same command resumes the run with {resume}")
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


def _take_part(cfg: DictConfig, components: RunComponents, checkpoints: Checkpoints, stop: StopRequest) -> int:
    try:
        _compare(cfg, components, [], stop, checkpoints)
    except Stopped:
        return stop.exit_code
    except FloatingPointError:  # on all ranks
        return 1
    return 0


def _set_up_torch(cfg: DictConfig, ranks: Ranks) -> None:
    keep_freed_memory()
    allow_tf32(cfg.runtime.tf32)
    slurm_cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cfg.runtime.threads or slurm_cores or ranks.size > 1:
        local_ranks = cfg.runtime.devices if cfg.runtime.devices > 1 else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = int(slurm_cores or os.cpu_count() or 1)
        torch.set_num_threads(cfg.runtime.threads or max(1, cores // local_ranks))


def _say_special_settings(
    terminal: TerminalLogger, cfg: DictConfig, components: RunComponents, ranks: Ranks, checkpoints: Checkpoints
) -> None:
    if checkpoints.step:
        terminal.say(f"resumes after step {checkpoints.step}")
    if lengths := components.training.segments:
        text = ", ".join(map(str, lengths))
        networks = "network" if components.in_segments == 1 else "networks"
        unit = "step" if lengths == [1] else "steps"
        terminal.say(f"segments of {text} {unit}: {components.in_segments} more {networks}")
    adjustment = components.adjustment
    if adjustment.tested or adjustment.equivalence is Equivalence.NONE:
        source = "found by testing" if adjustment.tested else "no adjustment is known"
        names = f"{cfg.estimator._target_} with {cfg.optimizer._target_}"
        terminal.say(f"{names}: {adjustment.equivalence}, {source}: {adjustment}")
    if ranks.size > 1:
        terminal.say(f"{ranks.size} ranks, members {cfg.runtime.placement}")
    if components.device.type == "cuda":
        terminal.say(f"{torch.cuda.get_device_name(components.device)}, TF32 {'on' if cfg.runtime.tf32 else 'off'}")
    if cfg.runtime.precision != "fp32" or cfg.runtime.tf32:
        terminal.say("rounding below float32 may drown what is measured: compare with the rows jitter and replica")


def _compare(
    cfg: DictConfig, components: RunComponents, loggers: list[Logger], stop: StopRequest, checkpoints: Checkpoints
) -> tuple[Comparison, int]:
    """The comparison, and the number of images that any rank skipped."""

    def on_row(row: Row) -> None:
        for logger in loggers:
            logger.log_row(row)

    def on_start(start: Start) -> None:
        for logger in loggers:
            if isinstance(logger, TerminalLogger):
                logger.say(str(start), wrap=True)

    ranks, dataset = Ranks(), components.dataset
    dataset.prepare()
    try:
        comparison = _compared(cfg, components, checkpoints, on_row, on_start, stop)
    except ArgumentError as error:
        raise ConfigError([f"{_key(error.name)}: {error}"]) from error
    return comparison, len(set().union(*(ranks.gather(list(dataset.skipped)) or [])))


def _key(argument: str) -> str:
    """The key of the configuration that sets an argument of ``compare``."""
    groups = {"build_model": "model", "loss": "model", "batches": "dataset", "validation": "dataset"}
    sections = (f"{section}.{argument}" for section, kind in SECTIONS.items() if argument in kind.defaults())
    return groups.get(argument) or next(sections, argument)


def _compared(
    cfg: DictConfig,
    components: RunComponents,
    checkpoints: Checkpoints,
    on_row: Callable[[Row], None],
    on_start: Callable[[Start], None],
    stop: StopRequest,
) -> Comparison:
    training, dataset = components.training, components.dataset
    execution = replace(components.execution, device=components.device)

    def batches(shard: Shard) -> TrainingBatches:
        return dataset.train_batches(training.batch_size, training.shuffle, training.seed, components.device, shard)

    def stopped() -> bool:
        return bool(stop)

    return compare(
        start_of_run(cfg, components, batches, execution, stopped),
        batches,
        loss=task_of(components.dataset).loss,
        estimator=components.estimator,
        optimizer=components.optimizer,
        lr=cfg.optimizer.lr * training.lr_scale,
        quantization=components.quantization,
        training=training,
        metrics=components.metrics,
        execution=execution,
        validation=lambda shard: dataset.test_batches(components.device, shard),
        counterparts=list(cfg.counterparts),
        checkpoints=checkpoints,
        on_row=on_row,
        on_start=on_start if training.pretrain_steps or components.files else None,
        stop=stopped,
    )

"""One run: builds what the configuration names, compares, and leaves a run folder."""

from __future__ import annotations

import logging
import platform
import signal
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qat_ste.cohort import L2Penalty
from qat_ste.comparison import Comparison, compare
from qat_ste.data.in_memory import EvaluationBatches
from qat_ste.loggers import Logger
from qat_ste.loggers.files import RunFolder
from qat_ste.loggers.terminal import TerminalLogger
from qat_ste.preparation import Parts
from qat_ste.schedules import by_name
from qat_ste.training import Row, Stopped

log = logging.getLogger(__name__)
PACKAGES = ("qat-ste", "torch", "torchvision", "hydra-core", "omegaconf", "wandb", "numpy", "scikit-learn")


class StopRequest:
    """Notes SIGINT, SIGTERM, SIGUSR1 and SIGUSR2, so that training ends at the next step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None


def run(cfg: DictConfig, parts: Parts, folder: Path, command: str) -> int:
    """Runs one comparison in ``folder``; returns the exit code."""
    with StopRequest() as stop:
        files = RunFolder(folder)
        terminal = TerminalLogger(parts.steps, cfg.runtime.line_seconds)
        loggers: list[Logger] = [files, terminal]
        exit_code = 1
        terminal.say(f"run folder: {folder}")
        try:
            if cfg.logger.get("_target_"):
                config = OmegaConf.to_container(cfg, resolve=True)
                loggers.append(instantiate(cfg.logger)(folder=folder, name=folder.name, config=config))
            comparison = _compare(cfg, parts, loggers, stop)
            results = _results(cfg, comparison, files.wall_seconds, command, parts.device)
            for logger in loggers:
                logger.log_results(results)
            _report(folder, comparison)
            files.set_status("done")
            exit_code = 0
        except Stopped as stopped:
            name = signal.Signals(stop.signal or signal.SIGTERM).name
            terminal.say(f"{name}: {stopped}; what was logged until then is in {folder}")
            files.step = stopped.step
            files.set_status("preempted", f"{name}: {stopped}")
            exit_code = 128 + (stop.signal or signal.SIGTERM)
        except FloatingPointError as error:
            log.error("%s", error)
            files.set_status("failed", str(error))
        except BaseException as error:
            log.exception("the run failed")
            files.set_status("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            for logger in reversed(loggers):
                logger.close(exit_code)
        if exit_code == 0:
            terminal.say(str((folder / "report.html").resolve()))
        return exit_code


def _compare(cfg: DictConfig, parts: Parts, loggers: list[Logger], stop: StopRequest) -> Comparison:
    def on_row(row: Row) -> None:
        for logger in loggers:
            logger.log_row(row)

    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    torch.backends.cudnn.allow_tf32 = False  # its rounding would drown what is measured
    batches, test = parts.batches, parts.dataset.test.to(parts.device)
    batches.split = batches.split.to(parts.device)
    return compare(
        parts.build_model,
        batches,
        loss=F.cross_entropy,
        bits=cfg.quantizer.bits,
        estimator=parts.estimator,
        optimizer=parts.optimizer,
        lr=cfg.optimizer.lr,
        steps=parts.steps,
        validation=EvaluationBatches(test),
        steps_per_epoch=parts.steps_per_epoch,
        schedule=by_name(cfg.train.schedule, parts.steps, cfg.train.warmup),
        counterparts=list(cfg.counterparts),
        include=list(cfg.quantizer.include),
        exclude=list(cfg.quantizer.exclude),
        biases=cfg.quantizer.biases,
        saturation=cfg.quantizer.saturation,
        l2=L2Penalty(cfg.train.l2, tuple(cfg.train.l2_include)) if cfg.train.l2 else None,
        sequence_weights=cfg.metrics.sequence_weights,
        log_every=cfg.metrics.every,
        seed=cfg.train.seed,
        device=parts.device,
        on_row=on_row,
        stop=lambda: bool(stop),
    )


def _results(
    cfg: DictConfig, comparison: Comparison, wall_seconds: float, command: str, device: torch.device
) -> dict[str, Any]:
    """The content of ``results.json``."""
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    return {
        "schema": 1,
        "command": command,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "versions": versions,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "steps": comparison.steps,
        "wall_seconds": wall_seconds,
        "quantized_weights": comparison.quantized_weights,
        "sequence_weights": comparison.sequence_weights,
        "lr_factor": comparison.lr_factor,
        "equivalence": comparison.equivalence,
        "reference": vars(comparison.reference),
        "counterparts": {name: vars(numbers) for name, numbers in comparison.counterparts.items()},
        "verdict": vars(comparison.verdict),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _report(folder: Path, comparison: Comparison) -> None:
    try:
        from qat_ste.report.page import write_report

        np.savez(folder / "weights.npz", **comparison.weights)  # type: ignore[arg-type]
        for figure, reason in write_report(folder).items():
            log.warning("figure %s could not be drawn: %s", figure, reason)
    except Exception as error:  # a full disk or a missing font must not cost a run its numbers
        log.warning("the report could not be written: %s: %s", type(error).__name__, error)

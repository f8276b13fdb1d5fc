"""The float network that a run starts from, trained once for all runs of the same start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from qat_ste.app.schema import parameters
from qat_ste.app.validate import RunComponents
from qat_ste.base.files import home_path
from qat_ste.base.run_config import digest, identity
from qat_ste.base.sections import Execution
from qat_ste.data.dataset import Shard, TrainingBatches
from qat_ste.data.task import task_of
from qat_ste.experiment.pretraining import pretrain

FOLDER = "pretrained"  # in paths.output
NOT_OF_START = ("steps", "epochs", "steps_per_epoch", "length_scale", "lr_scale", "share", "segment", "clip_at")


def start_of_run(
    cfg: DictConfig,
    components: RunComponents,
    batches: Callable[[Shard], TrainingBatches],
    execution: Execution,
    stop: Callable[[], bool],
) -> Callable[[], nn.Module]:
    """The function that builds the network of a run, pretrained if ``train.pretrain_steps`` says so."""
    training = components.training
    if not training.pretrain_steps:
        return components.build_model
    config = _config(cfg, components)
    return pretrain(
        components.build_model,
        batches,
        training.pretrain_steps,
        loss=task_of(components.dataset).loss,
        optimizer=components.optimizer,
        lr=cfg.optimizer.lr,
        training=training,
        execution=execution,
        folder=home_path(cfg.paths.output) / FOLDER / digest(config)[:16],
        config=config,
        schedule=parameters(cfg, "checkpoint"),
        stop=stop,
    )


def _config(cfg: DictConfig, components: RunComponents) -> dict[str, Any]:
    """What determines the float network: not what is quantized, nor how the run goes on."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    config = identity(plain)
    train = {key: value for key, value in config["train"].items() if key not in NOT_OF_START}
    parts = {key: config[key] for key in ("dataset", "model", "optimizer")}
    runtime = {"device": components.device.type, "precision": cfg.runtime.precision}
    return parts | {
        "train": train,
        "runtime": runtime,
        "data": components.dataset.fingerprint,
        "files": components.files,
    }

"""What is looked at before there is a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from qat_ste.composition import config_dir, packaged_default, value_problems
from qat_ste.config import problems_in
from qat_ste.job import locked_or_leave, outer_rank, tell
from qat_ste.values import unusable


class RunStart(Callback):
    """Hydra calls it before it makes the run folder, of whose name values may lead nowhere, or writes there."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Ends the command where a value cannot be looked at, ``paths`` are no paths, or the folder is in use."""
        cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        lost = unusable(cfg, packaged_default(config_dir(), dict(config.hydra.runtime.choices)))
        if lost or problems_in(cfg, "paths"):
            if not outer_rank():
                tell(value_problems(config_dir(), config))
            raise SystemExit(2)
        folder = Path(config.hydra.run.dir)
        if folder.is_dir() and not outer_rank():
            with locked_or_leave(folder, "hydra.run.dir"):
                pass

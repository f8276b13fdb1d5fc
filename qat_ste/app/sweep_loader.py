"""Composes the configurations of a sweep's jobs: those that differ in single values from one template."""

from __future__ import annotations

import pickle
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf


class SweepLoader(ConfigLoaderImpl):
    """Hydra's loader, which composes every job from all the files, and twice; here the values alone are put in anew."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._templates: dict[tuple[str, ...], bytes] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of one job, the same as Hydra's.

        Raises:
            HydraException: the overrides do not compose.
            OmegaConfBaseException: a value is not of its key's type.
        """
        overrides = OverridesParser.create().parse_overrides(sweep_overrides)
        values = _single_values(overrides)
        alike = tuple(o.key_or_group if o in values else str(o.input_line) for o in overrides)
        if alike not in self._templates:
            self._templates[alike] = pickle.dumps(super().load_sweep_config(master_config, sweep_overrides))
        config: DictConfig = pickle.loads(self._templates[alike])  # several times as fast as a deep copy
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value())
        config.hydra.overrides.task = sweep_overrides
        config.hydra.job.override_dirname = get_overrides_dirname(overrides, **config.hydra.job.config.override_dirname)
        return config


def _single_values(overrides: list[Override]) -> list[Override]:
    """Those that put a number, string, truth value or null in the place of another, wherever they stand among the rest.

    A key with a dot in it names no group.
    """
    replaced = [o for o in overrides if o.is_delete() or isinstance(o.value(), dict | list)]
    with_all_below = tuple(f"{o.key_or_group}." for o in replaced)
    return [
        o
        for o in overrides
        if "." in o.key_or_group
        and not (o.package or o.is_add() or o.is_force_add())
        and not f"{o.key_or_group}.".startswith(with_all_below)
    ]

"""Labels of configurations: the keys and values that distinguish them, as in an override."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from qat_ste.base.run_config import identity
from qat_ste.base.text import one_line

LONGEST = 80  # characters of a label that lists every differing key
TARGET = "._target_"
Flat = dict[str, Any]


def comparable(config: Mapping[str, Any]) -> Flat:
    """Flattens a configuration, without the seed and without keys that change no number."""
    return flat(identity(config, leave_out=("train.seed",)))


def flat(config: Mapping[str, Any], prefix: str = "") -> Flat:
    """Flattens a configuration to dotted keys."""
    items: Flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def with_options(configs: Sequence[Flat], choices: Sequence[Mapping[str, str]]) -> list[Flat]:
    """Replaces each ``_target_`` by its option ("tanh"), or else its class ("Tanh"), if that is unambiguous."""
    named = [dict(config) for config in configs]
    for key in {key for config in configs for key in config if key.endswith(TARGET)}:
        targets = [written(config.get(key)) for config in configs]
        options = [choice.get(key.removesuffix(TARGET)) for choice in choices]
        for names in (options, [target.rpartition(".")[2] for target in targets]):
            if None not in names and len(set(zip(names, targets, strict=True))) == len(set(names)):
                for config, name in zip(named, names, strict=True):
                    config[key] = name
                break
    return named


def written(value: Any) -> str:
    """Formats a value as in an override."""
    return value if isinstance(value, str) else json.dumps(value)


def labels(configs: Sequence[Flat]) -> list[str]:
    """Labels each configuration by all differing keys, or by as few as are needed if that is too long."""
    differences = _differences(configs)
    complete = [", ".join(texts.values()) for texts in differences]
    if max(map(len, complete)) <= LONGEST:
        return complete
    keys = _sufficient_keys(differences)
    return [", ".join(text for key, text in texts.items() if key in keys) for texts in differences]


def _differences(configs: Sequence[Flat]) -> list[dict[str, str]]:
    """Returns the differing keys of each configuration with their texts; compares arguments within a ``_target_``."""
    differences: list[dict[str, str]] = [{} for _ in configs]
    for key in dict.fromkeys(key for config in configs for key in config):
        target = f"{key.partition('.')[0]}{TARGET}"
        targets = ["" if key == target else written(config.get(target)) for config in configs]
        values: dict[str, set[str]] = defaultdict(set)
        for name, config in zip(targets, configs, strict=True):
            values[name].add(written(config.get(key)))
        for name, config, texts in zip(targets, configs, differences, strict=True):
            if len(values[name]) > 1:
                texts[key] = f"{key.removesuffix(TARGET)}={_shortened(written(config.get(key)))}"
    return differences


def _shortened(value: str) -> str:
    """Shortens a long value to its start and a checksum, which still distinguishes runs."""
    if len(value) <= LONGEST and value.isprintable():
        return value
    return f"{one_line(value[:LONGEST])}… ({zlib.crc32(value.encode(errors='replace')):08x})"


def _sufficient_keys(differences: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns keys that distinguish all configurations, chosen greedily."""
    remaining = list(dict.fromkeys(key for texts in differences for key in texts))
    chosen: list[str] = []

    def distinct(keys: Sequence[str]) -> int:
        return len({tuple(texts.get(key) for key in keys) for texts in differences})

    while remaining and distinct(chosen) < distinct([*chosen, *remaining]):
        best = max(remaining, key=lambda key: distinct([*chosen, key]))
        chosen.append(best)
        remaining.remove(best)
    return chosen

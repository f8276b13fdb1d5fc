"""What tells one configuration from others, in as few words as will do."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qat_ste.base.run_config import identity
from qat_ste.base.text import one_line

LONGEST = 80  # characters of a label that names every key in which configurations differ
Flat = dict[str, Any]


def comparable(config: Mapping[str, Any]) -> Flat:
    """What a run's numbers depend on but for its seed, by dotted keys, whichever version wrote it."""
    return flat(identity(config, leave_out=("train.seed",)))


def flat(config: Mapping[str, Any], prefix: str = "") -> Flat:
    """The configuration by dotted keys."""
    items: Flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def written(value: Any) -> str:
    """As in an override."""
    return value if isinstance(value, str) else json.dumps(value)


def labels(configs: Sequence[Flat]) -> list[str]:
    """For each configuration the keys in which it differs from others; only enough of them where they are many."""
    parts = _parts(configs)
    whole = [", ".join(part.values()) for part in parts]
    if max(map(len, whole)) <= LONGEST:
        return whole
    keys = _enough(parts)
    return [", ".join(text for key, text in part.items() if key in keys) for part in parts]


def _parts(configs: Sequence[Flat]) -> list[dict[str, str]]:
    """By key, where it differs. Arguments of a ``_target_`` are told only of those that share it."""
    parts: list[dict[str, str]] = [{} for _ in configs]
    for key in dict.fromkeys(key for config in configs for key in config):
        target = f"{key.partition('.')[0]}._target_"
        kinds = ["" if key == target else written(config.get(target)) for config in configs]
        values: dict[str, set[str]] = defaultdict(set)
        for kind, config in zip(kinds, configs, strict=True):
            values[kind].add(written(config.get(key)))
        for kind, config, part in zip(kinds, configs, parts, strict=True):
            if len(values[kind]) > 1:
                value = written(config.get(key))
                shown = value.rpartition(".")[2] if key == target else value
                part[key] = f"{key.removesuffix('._target_')}={_brief(shown)}"
    return parts


def _brief(value: str) -> str:
    """Long ones by their beginning and a checksum: they still tell runs apart."""
    if len(value) <= LONGEST and value.isprintable():
        return value
    return f"{one_line(value[:LONGEST])}… ({zlib.crc32(value.encode(errors='replace')):08x})"


def _enough(parts: Sequence[Mapping[str, str]]) -> set[str]:
    """Keys that tell all apart, those that tell most apart first."""
    left = list(dict.fromkeys(key for part in parts for key in part))
    chosen: list[str] = []

    def told_apart(keys: Iterable[str]) -> int:
        wanted = list(keys)
        return len({tuple(part.get(key) for key in wanted) for part in parts})

    while left and told_apart(chosen) < told_apart([*chosen, *left]):
        best = max(left, key=lambda key: told_apart([*chosen, key]))
        chosen.append(best)
        left.remove(best)
    return set(chosen)

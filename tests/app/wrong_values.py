"""Wrong values for every key of the configuration, made from what is there."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from qat_ste.app.compose import compose_file, config_dir, options
from tests.conftest import SHARED, command

# For every key, whatever it is: wrong in sign, size, kind or form.
ANYWHERE = (
    *("0", "-1", "0.5", "1e9", "1000000000000", "1e308", "-1e308", "nan", "inf", "-inf", "true", "null"),
    *("abc", "''", "x" * 10_000, "[]", "[1]", "[[],{}]", "{}", "{a:1}", "'???'", "${nowhere}", "'${nowhere:1}'"),
    "'{x}/../%s'",
)


@dataclass(frozen=True)
class Input:
    """A wrong value, and the options under which its key is there."""

    chosen: tuple[str, ...]
    key: str
    text: str

    @property
    def overrides(self) -> list[str]:
        return [*self.chosen, *needs(self.chosen), f"{self.key}={self.text}"]

    def __str__(self) -> str:
        return " ".join(override if len(override) < 80 else f"{override[:60]}…" for override in self.overrides)


def wrong(value: Any) -> Iterator[str]:
    """Values that a key with this one may well refuse, as an override writes them."""
    yield from ANYWHERE
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (f"{-value:g}", f"{value + 0.5:g}", f"{value * 1e6:g}", f"[{value:g}]", f"'{value:g}x'")
        yield f"{int(value) or 1}" + "0" * 20
    if isinstance(value, str) and re.fullmatch(r"[\w.]+", value):
        yield from (f"{value}x", f"[{value}]", value.swapcase())
    if isinstance(value, list) and value:
        yield from ("[" + ",".join(["-1"] * len(value)) + "]", "[" + ",".join(["7"] * 2000) + "]", "[a,b]", "[nan,1]")
        yield "[null]"


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Keys and plain values; a list is one value."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{key}.{name}")
    else:
        yield key, node


@cache
def groups() -> tuple[str, ...]:
    """Top-level parts of the configuration."""
    return tuple(str(name) for name in compose_file(config_dir(), []) if name != "dry_run")


@cache
def choices(group: str) -> tuple[tuple[str, ...], ...]:
    """The options of a top-level part; of one that has none, nothing to be said."""
    return tuple((f"{group}={name}",) for name in options(group, config_dir())) or ((),)


@cache
def inputs(group: str, chosen: tuple[str, ...]) -> tuple[Input, ...]:
    """All wrong values for the keys of one top-level part under one of its options."""
    part: Any = OmegaConf.to_container(compose_file(config_dir(), list(chosen)))
    found = leaves(part[group], group)
    return tuple(Input(chosen, key, text) for key, value in found for text in dict.fromkeys(wrong(value)))


@cache
def needs(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """What else has to be said with an option: images that fit, where they lie, or what its refusal proposes.

    Raises:
        LookupError: the option cannot be had here.
    """
    data = iter(("mnist", "text", "imagenet"))
    more: list[str] = []
    for _ in range(8):
        done = command(*chosen, *more, "logger=none", "dry_run=true")
        if not done.code:
            return tuple(more)
        example = done.err.splitlines()[0].rpartition("; for example ")[2].strip("'")
        if "images of" in done.err or "windows of" in done.err:
            more = [f"dataset={next(data)}"]
        elif example.startswith("paths.data="):
            with_images = "imagenet-sample" if "dataset=imagenet" in (*chosen, *more) else "mnist"
            more.append(f"paths.data={SHARED / 'data' / with_images}")
        else:
            more.append(example)
    raise LookupError(f"{' '.join(chosen)} cannot be had here: {done.err}")


def drawn(draw: random.Random, count: int) -> list[Input]:
    """As many of each part of the configuration, however many keys it has."""
    found = []
    for _ in range(count):
        group = draw.choice(groups())
        found.append(draw.choice(inputs(group, draw.choice(choices(group)))))
    return found

"""Wrong values for every key of the configuration, made from what is there: refused in one line, or accepted."""

from __future__ import annotations

import io
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from omegaconf import OmegaConf

LONG = "x" * 10_000
# For every key, whatever it is: wrong in sign, size, kind or form.
ANYWHERE = (
    *("0", "-1", "0.5", "1e9", "1000000000000", "1e308", "-1e308", "nan", "inf", "-inf", ".nan", "true", "null"),
    *("abc", "''", LONG, "[]", "[1]", "[[],{}]", "{}", "{a:1}", "'???'", "${nowhere}", "'${nowhere:1}'", "'{x}/../%s'"),
)
SECONDS, SLOWEST = 3.0, 60.0  # to refuse; to do anything at all
ROOM = 6 << 30  # bytes that a wrong value may have the command ask for
BASE = ("dry_run=true", "logger=none")
TRAINED = 2_000  # images, times members, of a training that is short enough to be tried


@dataclass(frozen=True)
class Input:
    """A wrong value and the overrides that bring its key about."""

    chosen: tuple[str, ...]
    key: str
    text: str

    @property
    def overrides(self) -> list[str]:
        return [*self.chosen, f"{self.key}={self.text}"]

    def __str__(self) -> str:
        return " ".join(o if len(o) < 80 else f"{o[:60]}…" for o in self.overrides)


@dataclass(frozen=True)
class Done:
    """What the command came to."""

    code: int
    out: str
    err: str
    seconds: float


def wrong(value: Any) -> Iterator[str]:
    """Values that a key with this one is likely to refuse, as an override writes them."""
    yield from ANYWHERE
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (
            f"{-value:g}",
            f"{value + 0.5:g}",
            f"{value * 1e6:g}",
            f"[{value:g}]",
            f"'{value:g}x'",
            f"{int(value)}" + "0" * 20,
        )
    if isinstance(value, str) and re.fullmatch(r"[\w.]+", value):
        yield from (f"{value}x", f"[{value}]", value.upper() if value.islower() else value.lower())
    if isinstance(value, list) and value:
        yield from (
            f"[{','.join(['-1'] * len(value))}]",
            "[" + ",".join(["7"] * 2000) + "]",
            "[a,b]",
            "[nan,1]",
            "[null]",
        )


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and plain values; a list is one value."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


@cache
def inputs(group: str) -> tuple[Input, ...]:
    """All wrong values for the keys of one top-level part of the configuration, under each of its options."""
    from qat_ste.composition import compose_file, config_dir, options

    choices: list[tuple[str, ...]] = [(f"{group}={name}",) for name in options(group, config_dir())] or [()]
    made: dict[tuple[Any, ...], Input] = {}
    for chosen in choices:
        cfg = compose_file(config_dir(), [*BASE, *chosen])
        part: Any = OmegaConf.to_container(cfg, resolve=False)
        for key, value in leaves(part.get(group, {}), group):
            target = part[group].get("_target_") if isinstance(part[group], dict) else None
            for text in dict.fromkeys(wrong(value)):
                made.setdefault((target, key, text), Input(chosen, key, text))
    return tuple(made.values())


def groups() -> list[str]:
    """Top-level parts of the configuration."""
    from qat_ste.composition import compose_file, config_dir

    return [str(name) for name in compose_file(config_dir(), list(BASE)) if name != "dry_run"]


class Hung(BaseException):
    """A call took longer than ``SLOWEST``."""


@contextmanager
def bounded() -> Iterator[None]:
    """No more time and memory than a wrong value may take."""

    def hung(_: int, frame: FrameType | None) -> None:
        raise Hung("".join(traceback.format_stack(frame, 4)))

    before, (soft, hard) = signal.signal(signal.SIGALRM, hung), resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM if used else soft, hard))
    signal.alarm(int(SLOWEST))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def command(*arguments: str) -> Done:
    """``qat-run`` in this process, which has torch already; whatever it raises ends up in ``err`` as a traceback."""
    from hydra.core.global_hydra import GlobalHydra

    from qat_ste import cli

    GlobalHydra.instance().clear()
    code, out, err, start = 0, io.StringIO(), io.StringIO(), time.perf_counter()
    with patch.object(sys, "argv", ["qat-run", *arguments]), redirect_stdout(out), redirect_stderr(err), bounded():
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except (Exception, Hung):
            code = 1
            traceback.print_exc()
    return Done(code, out.getvalue(), err.getvalue(), time.perf_counter() - start)


def faults_of(given: Input, done: Done) -> list[str]:
    """What does not hold: refused in one line that names the key, or described, and never anything else."""
    lines = done.err.splitlines()
    found = []
    if "Traceback" in done.err:
        found.append(f"traceback: {lines[-1][:300]}")
    elif done.code == 2:
        named = [line for line in lines if _names(line, given.key)]
        if len(lines) != 1:
            found.append(f"{len(lines)} lines: " + " | ".join(line[:200] for line in lines[:3]))
        elif not named:
            found.append(f"names another key: {lines[0][:300]}")
        elif "; for example " not in lines[0] and "allowed" not in lines[0] and "must be" not in lines[0]:
            found.append(f"does not say what is allowed: {lines[0][:300]}")
        if max(map(len, lines), default=0) > 1500:
            found.append(f"floods the terminal with {len(done.err)} characters")
    elif done.code == 0:
        if "members x" not in done.out:
            found.append("accepted, but no run is described")
    else:
        found.append(f"exit code {done.code}: {' | '.join(lines)[:300]}")
    return found


def _names(line: str, key: str) -> bool:
    """Whether it starts with the key, or with what the key is a part of, and a value."""
    told = line.removeprefix("qat-run: ").lstrip("'").partition("=")[0]
    return key == told or key.startswith(f"{told}.")
